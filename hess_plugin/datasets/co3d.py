"""CO3Dv2: sequences of an object with COLMAP cameras and depth, in the layout of the official download.

Scenes are named "category/sequence", views by frame number ("000012"). World frame and unit are each
sequence's own. Which frames belong to a scene is said by a set list; the default, the known frames of both
many-view dev sequences of 20 categories, makes 40 scenes, as many as the paper calibrates on (it names none).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import InputError
from .base import PhotoDataset, UnusableView, View
from .co3d_annotations import Frame, Sequence, parse_frame, pose_problem, read_frames, read_sequences
from .co3d_subsets import Subset, check_tree
from .pixels import read_channel, read_photo
from .ply import read_ply_points
from .records import Record


class Co3dDataset(PhotoDataset):
    """Sequences of the official CO3Dv2 tree.

    Args:
        root: of the tree, with `category_to_subset_name_list.json`.
        subset: name of a set list, or "manyview_dev" for both of that kind; ":val" or ":test" behind it names
            the split, without one it is "train".
        exclude: a subset whose sequences are skipped; "fewview_dev:test" is what most papers evaluate on.
        categories: to take, a list or "apple,bench"; None takes all that have the subset.
        min_quality: sequences whose viewpoint quality score is not above are skipped, as everyone does.
        with_background: keep all depth. Without, depth counts inside the depth masks, which mark the object
            and what is consistent between views, as in VGGT; where a frame has none, inside the object's
            mask, and frames with neither have no depth. (VGGT also drops the farthest 2 % of all pixels,
            which is a third of the object's; that is left out here.)
        with_cloud: give `pointcloud.ply` as the scene's `cloud`; sequences without one are skipped.
        sizes: `image_width`, `patch_size` and `min_views` of `Dataset`.

    Raises:
        InputError: the tree is of another format, an annotation file is missing or damaged, or no category
            has the subset.
    """

    name: ClassVar[str] = "co3d"
    root: Path

    def __init__(
        self,
        root: Path,
        *,
        subset: str = "manyview_dev",
        exclude: str | None = None,
        categories: str | Iterable[str] | None = None,
        min_quality: float = 0.5,
        with_background: bool = False,
        with_cloud: bool = False,
        **sizes: int,
    ) -> None:
        super().__init__(**sizes)
        self.root, self.with_background, self.with_cloud = root, with_background, with_cloud
        self.min_quality = min_quality
        check_tree(root)
        self._subset, self._exclude = Subset(subset), Subset(exclude) if exclude else None
        named = categories.split(",") if isinstance(categories, str) else categories
        chosen = self._subset.categories(root, None if named is None else list(named))
        if self._exclude:
            self._exclude.categories(root, chosen)
        self.settings |= {
            "subset": str(self._subset),
            "exclude": str(self._exclude) if self._exclude else None,
            "categories": chosen,
            "min_quality": min_quality,
            "with_background": with_background,
            "with_cloud": with_cloud,
        }
        self._frames: dict[str, dict[int, Frame]] = {}
        self._clouds: dict[str, str | None] = {}
        for category in chosen:
            self._read_category(category)

    def scene_ids(self) -> list[str]:
        """Sequences that can be used, as "category/sequence", sorted."""
        return sorted(self._frames)

    def view_ids(self, scene_id: str) -> list[str]:
        """Numbers of the listed frames, six digits."""
        return [f"{number:06d}" for number in sorted(self._frames[scene_id])]

    def read_view(self, scene_id: str, view_id: str) -> View:
        """See `PhotoDataset.read_view`."""
        frame = self._frames[scene_id][int(view_id)]
        path = self.root / frame.image
        if path.with_suffix(".npz").exists():
            raise InputError(
                f"{str(path.with_suffix('.npz'))!r} shows that this tree was made by DUSt3R's preprocessing, "
                "whose depth maps look alike but mean something else; give the official CO3Dv2 tree."
            )
        image = read_photo(path)
        _check_size(path, image, frame)
        if not image.any():
            raise UnusableView("the image is black, as the challenge's hidden frames are")
        return View(image, frame.extrinsics, frame.intrinsics, self._read_depth(frame))

    def read_cloud(self, scene_id: str) -> np.ndarray | None:
        """See `PhotoDataset.read_cloud`."""
        path = self._clouds[scene_id]
        return read_ply_points(self.root / path) if path else None

    def _read_depth(self, frame: Frame) -> np.ndarray | None:
        mask_path = None if self.with_background else frame.depth_mask or frame.object_mask
        if frame.depth is None or (mask_path is None and not self.with_background):
            return None
        path = self.root / frame.depth
        values = read_channel(path)
        _check_size(path, values, frame)
        if values.dtype not in (np.uint16, np.int32):  # Pillow's types of 16-bit images, by its version
            raise InputError(f"depth map {str(path)!r} must have 16 bits per pixel, got {values.dtype}.")
        depth = decode_depth(values) * frame.depth_scale
        if mask_path is not None:
            mask = read_channel(self.root / mask_path, "mask")
            _check_size(self.root / mask_path, mask, frame)
            depth[mask <= (0 if frame.depth_mask else 127)] = 0  # the object's mask is a probability of 255
        return depth

    def _read_category(self, category: str) -> None:
        """Fill in the frames of a category's usable sequences, and why the others are skipped."""
        listed = self._subset.frames(self.root, category)
        excluded = self._exclude.frames(self.root, category) if self._exclude else {}
        sequences = read_sequences(self.root / category / "sequence_annotations.jgz", listed)
        wanted = {}
        for name, numbers in listed.items():
            problem = self._sequence_problem(sequences.get(name), numbers)
            if name in excluded:
                problem = f"it is also in {self._exclude}"
            if problem:
                self.skipped[f"{category}/{name}"] = problem
            else:
                wanted[name] = numbers
        records = read_frames(self.root / category / "frame_annotations.jgz", wanted)
        for name, numbers in wanted.items():
            frames, problem = _parse_frames(records.get(name, {}), numbers)
            if problem:
                self.skipped[f"{category}/{name}"] = problem
            else:
                self._frames[f"{category}/{name}"] = frames
                self._clouds[f"{category}/{name}"] = sequences[name].cloud if self.with_cloud else None

    def _sequence_problem(self, sequence: Sequence | None, numbers: set[int]) -> str | None:
        if sequence is None:
            return "it is in the set list, but not in sequence_annotations.jgz"
        quality = sequence.quality
        if quality is None or not quality > self.min_quality:  # NaN compares false
            known = "null" if quality is None else f"{quality:.2f}"
            return f"its viewpoint quality is {known}, not above {self.min_quality}"
        if len(numbers) < self.min_views:
            return f"it has {len(numbers)} frames in the set list, {self.min_views} are needed"
        if self.with_cloud and sequence.cloud is None:
            return "it has no point cloud"
        return None


def decode_depth(values: np.ndarray) -> np.ndarray:
    """Depth [h, w] float64 of 16-bit values that hold the bits of half floats; 0 where there is none.

    Example:
        >>> decode_depth(np.array([[16640, 0, 31744, 32256]])).tolist()  # 2.5, none, infinite, NaN
        [[2.5, 0.0, 0.0, 0.0]]
    """
    depth = values.astype(np.uint16).view(np.float16).astype(np.float64)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0)


def _parse_frames(records: dict[int, Record], numbers: set[int]) -> tuple[dict[int, Frame], str | None]:
    """Frames by number, and why the sequence cannot be used: one bad camera spoils all, as in VGGT."""
    frames = {}
    for number in sorted(numbers):
        if number not in records:
            return {}, f"frame {number} is in the set list, but not in frame_annotations.jgz"
        frame = parse_frame(records[number])
        if frame is None:
            return {}, f"frame {number} in frame_annotations.jgz: 'viewpoint' is null"
        problem = pose_problem(frame.extrinsics, frame.intrinsics)
        if problem:
            return {}, f"frame {number} in frame_annotations.jgz: {problem}"
        frames[number] = frame
    return frames, None


def _check_size(path: Path, values: np.ndarray, frame: Frame) -> None:
    if values.shape[:2] != frame.size:
        found, expected = (f"{size[1]} x {size[0]}" for size in (values.shape, frame.size))
        raise InputError(
            f"{str(path)!r} has {found} pixels, but 'image.size' of its frame annotation says {expected}."
        )
