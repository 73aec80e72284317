"""The two trees in which DTU comes with images, cameras and depth maps, read view by view.

Both number scans from 1, as in `scan1`, and views from 0, as in `00000000`. Depth is in mm; unknown is what
is 0, not finite, or outside the tree's own masks.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..errors import InputError
from .base import View
from .dtu_files import read_camera, read_npy_depth, read_pfm, read_view_list
from .pixels import read_photo

LIGHTS = 7  # of the training tree, from 0
DEPTH_STRIDE = 4  # image pixels per pixel of the training tree's depth maps, in either direction
_ERODED = 10  # pixels; edge of the block by which the point-map protocol erodes its masks
_LEAST_DEPTH = 1e-4  # mm; the point-map protocol's bound


class DtuLayout(ABC):
    """A tree below a root; `settings` say which one, and what of it is read."""

    settings: dict[str, Any]

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def scans(self) -> list[int]:
        """Numbers of the scans that have a folder, in order."""

    @abstractmethod
    def why_unusable(self, scan: int) -> str | None:
        """What the scan lacks as a whole; None if nothing."""

    @abstractmethod
    def view_ids(self, scan: int) -> list[str]:
        """Ids of a scan's views, in order."""

    @abstractmethod
    def read_view(self, scan: int, view_id: str) -> View:
        """One view as stored; conventions as in `View`.

        Raises:
            InputError: naming the file that is missing, damaged, or does not fit the others.
        """


class PointmapLayout(DtuLayout):
    """The tree of the point-map protocol of Spann3R, CUT3R and π³.

    `scanN/`: `images/%08d.jpg`, `cams/%08d_cam.txt`, `depths/%08d.npy`, `binary_masks/%08d.png`. K belongs to
    the depth map, which covers the same rectangle as the image. A mask (255 = object) of another size is
    resized, then eroded once by a block of 10 x 10 pixels, as in the protocol.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.settings = {"layout": "pointmap"}

    def scans(self) -> list[int]:
        """See `DtuLayout`."""
        return _numbers_in(self.root, r"scan([1-9]\d*)")

    def why_unusable(self, scan: int) -> str | None:
        """See `DtuLayout`."""
        names = ("images", "cams", "depths", "binary_masks")
        lacking = [name for name in names if not (self._folder(scan) / name).is_dir()]
        return f"there is no folder {lacking[0]!r}" if lacking else None

    def view_ids(self, scan: int) -> list[str]:
        """See `DtuLayout`."""
        return [f"{number:08d}" for number in _numbers_in(self._folder(scan) / "images", r"(\d{8})\.jpg")]

    def read_view(self, scan: int, view_id: str) -> View:
        """See `DtuLayout`."""
        folder = self._folder(scan)
        camera_path = folder / "cams" / f"{view_id}_cam.txt"
        depth_path = folder / "depths" / f"{view_id}.npy"
        image = read_photo(folder / "images" / f"{view_id}.jpg")
        extrinsics, intrinsics = read_camera(camera_path)
        depth = read_npy_depth(depth_path)
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        if abs(rows - height * columns / width) >= 1:
            raise InputError(
                f"depth map {str(depth_path)!r} has {columns} x {rows} pixels, its image {width} x {height}; "
                "their aspects must be equal."
            )
        _check_principal_point(intrinsics, depth.shape, camera_path)
        mask = _read_mask(folder / "binary_masks" / f"{view_id}.png")
        mask = mask[np.ix_(_nearest(rows, len(mask)), _nearest(columns, mask.shape[1]))]
        x, y = width / columns, height / rows
        to_image = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])  # u' + 0.5 = x (u + 0.5)
        depth = _known_depth(depth, erode(mask, _ERODED), depth_path)
        return View(image, extrinsics, to_image @ intrinsics, depth)

    def _folder(self, scan: int) -> Path:
        return self.root / f"scan{scan}"


class TrainingLayout(DtuLayout):
    """MVSNet's training tree: depth maps and K at a quarter of the images' size, several lights.

    `Cameras/pair.txt`, `Cameras/train/%08d_cam.txt` (one set for all scans), `Depths/scanN_train/` with
    `depth_map_%04d.pfm` and `depth_visual_%04d.png` (255 = valid), and `Rectified/scanN_train/` with
    `rect_%03d_L_r5000.png` for light L, whose views count from 1.

    As MVSNet's readers have it, K for the images is 4 times the first two rows of the file's, without half
    pixels. So pixel (u, v) of a depth map is pixel (4u, 4v) of its image, and its value is given to the image
    pixels that are nearest to that one.

    Args:
        root: of the tree.
        light: 0 to 6.
    """

    def __init__(self, root: Path, light: int) -> None:
        super().__init__(root)
        if light not in range(LIGHTS):
            raise InputError(f"light must be from 0 to {LIGHTS - 1}, got {light!r}.")
        self.light = light
        self.settings = {"layout": "mvsnet-training", "light": light}

    def scans(self) -> list[int]:
        """See `DtuLayout`."""
        return _numbers_in(self.root / "Rectified", r"scan([1-9]\d*)_train")

    def why_unusable(self, scan: int) -> str | None:
        """See `DtuLayout`."""
        name = f"Depths/scan{scan}_train"
        return None if (self.root / name).is_dir() else f"there is no folder {name!r}"

    def view_ids(self, scan: int) -> list[str]:
        """See `DtuLayout`; all scans have the views of `pair.txt`."""
        return [f"{number:08d}" for number in sorted(read_view_list(self.root / "Cameras" / "pair.txt"))]

    def read_view(self, scan: int, view_id: str) -> View:
        """See `DtuLayout`."""
        depths, number = self.root / "Depths" / f"scan{scan}_train", int(view_id)
        camera_path = self.root / "Cameras" / "train" / f"{view_id}_cam.txt"
        depth_path = depths / f"depth_map_{number:04d}.pfm"
        image_name = f"rect_{number + 1:03d}_{self.light}_r5000.png"
        image = read_photo(self.root / "Rectified" / f"scan{scan}_train" / image_name)
        extrinsics, intrinsics = read_camera(camera_path)
        depth = read_pfm(depth_path)
        mask = _read_mask(depths / f"depth_visual_{number:04d}.png")
        expected = image.shape[0] / DEPTH_STRIDE, image.shape[1] / DEPTH_STRIDE
        for name, shape in (("depth_map", depth.shape), ("depth_visual", mask.shape)):
            if shape != expected:
                raise InputError(
                    f"{str(depth_path)!r}: {name} has {shape[1]} x {shape[0]} pixels, its image "
                    f"{image.shape[1]} x {image.shape[0]}; it must be a quarter of that in both directions."
                )
        _check_principal_point(intrinsics, depth.shape, camera_path)
        depth = _known_depth(depth, mask, depth_path)
        rows, columns = (_nearest_sample(length) for length in depth.shape)
        to_image = np.diag([DEPTH_STRIDE, DEPTH_STRIDE, 1.0])
        return View(image, extrinsics, to_image @ intrinsics, depth[np.ix_(rows, columns)])


def erode(mask: np.ndarray, size: int) -> np.ndarray:
    """Pixels of a mask [h, w] bool whose block of `size` x `size` pixels lies in the mask.

    An even block reaches from `size / 2` pixels before to `size / 2 - 1` after its pixel, as in OpenCV; what
    lies outside the image counts as mask.

    Example:
        >>> erode(np.array([[True] * 4 + [False] + [True] * 4]), size=4).astype(int)
        array([[1, 1, 1, 0, 0, 0, 0, 1, 1]])
    """
    before = size // 2
    padded = np.pad(mask, (before, size - 1 - before), constant_values=True)
    rows = np.all(sliding_window_view(padded, size, axis=0), axis=-1)
    return np.all(sliding_window_view(rows, size, axis=1), axis=-1)


def _numbers_in(folder: Path, pattern: str) -> list[int]:
    """Numbers in the names that fit the pattern as a whole, in order; none where there is no folder."""
    names = (path.name for path in folder.glob("*"))
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))


def _read_mask(path: Path) -> np.ndarray:
    """[h, w] bool; one or eight bits a pixel, one channel or three equal ones."""
    return read_photo(path)[..., 0] > 127


def _nearest(count: int, old_count: int) -> np.ndarray:
    """For each of `count` pixels the one of `old_count` in which its centre falls, along one axis."""
    return ((np.arange(count) + 0.5) * old_count / count).astype(int)


def _nearest_sample(count: int) -> np.ndarray:
    """For each image pixel the depth pixel u whose place 4u is nearest, the last one for those beyond it."""
    return np.minimum((np.arange(DEPTH_STRIDE * count) + DEPTH_STRIDE // 2) // DEPTH_STRIDE, count - 1)


def _known_depth(depth: np.ndarray, mask: np.ndarray, path: Path) -> np.ndarray:
    known = mask & np.isfinite(depth) & (depth > _LEAST_DEPTH)
    if not known.any():
        raise InputError(f"depth map {str(path)!r}: no pixel of its mask has a depth above 0.")
    return np.where(known, depth, 0.0)


def _check_principal_point(intrinsics: np.ndarray, shape: tuple[int, ...], path: Path) -> None:
    """A camera file does not name its image size; one of another size is noticed by where its centre lies."""
    height, width = shape
    x, y = intrinsics[:2, 2]
    if abs(x / width - 0.5) > 0.25 or abs(y / height - 0.5) > 0.25:
        raise InputError(
            f"{str(path)!r}: 'intrinsic' has its centre at ({x:g}, {y:g}), but must be for the depth map of "
            f"{width} x {height} pixels."
        )
