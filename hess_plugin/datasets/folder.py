"""Scenes from folders: photos with the cameras and depth maps of `cameras.json`, or the paths of photos.

A scene folder holds `cameras.json`, and the photos and 16-bit depth maps that it names. Its fields are
`depth_scale` (depth = value / depth_scale) and `views`, a list of records with `image` and `depth` (paths in
the folder), `width` and `height` (pixels of both), `K` (3x3) and `world_to_camera` (4x4), as in `Scene`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .scene import Scene

PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def load_scene(
    folder: str | Path, width: int = 518, patch_size: int = 14, max_views: int | None = None
) -> Scene:
    """The scene in a folder with `cameras.json`, at the size that a model takes.

    As in VGGT's preprocessing, photos are resized (bicubic) to `width`, the height to the nearest multiple
    of `patch_size`, and what is taller than wide is cropped to a square around its centre. Intrinsics follow,
    and depth is taken from the nearest pixel.

    Args:
        folder: see above.
        width: pixels, a multiple of `patch_size`.
        patch_size: pixels.
        max_views: keep at most so many views, evenly spaced; None keeps all.

    Raises:
        InputError: naming the file, and in `cameras.json` the field, that is missing or does not fit.
    """
    folder = Path(folder)
    if width < 1 or patch_size < 1 or width % patch_size:
        raise InputError(f"width must be a positive multiple of the patch size {patch_size}, got {width}.")
    _check_max_views(max_views)
    return _load_with_cameras(folder, width, patch_size, max_views)


def find_photos(folder: str | Path, max_views: int | None = None) -> list[Path]:
    """Photos of a folder or, if it has none, of its folder `images`, in the order of their names.

    Args:
        folder: of photos.
        max_views: keep at most so many, evenly spaced; None keeps all.

    Raises:
        InputError: there is no such folder, or no photo in it.
    """
    folder = Path(folder)
    _check_max_views(max_views)
    if not folder.is_dir():
        raise InputError(f"there is no folder {str(folder)!r}; give a folder of photos.")
    for place in (folder, folder / "images"):
        found = sorted(path for path in place.glob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
        if found:
            return _choose(found, max_views)
    raise InputError(
        f"no photos in {str(folder)!r} nor in its folder 'images'; "
        f"known endings: {', '.join(PHOTO_SUFFIXES)}."
    )


class _Resizing:
    """From photos of one size to the model's input: resize, then crop rows at top and bottom."""

    def __init__(self, size: tuple[int, int], width: int, patch_size: int) -> None:
        self.old_width, self.old_height = size
        self.width = width
        self.full_height = max(1, round(self.old_height * width / self.old_width / patch_size)) * patch_size
        self.height = min(self.full_height, width)
        self.top = (self.full_height - self.height) // 2

    def photo(self, image: Image.Image) -> np.ndarray:
        """[height, width, 3] uint8."""
        resized = image.resize((self.width, self.full_height), Image.Resampling.BICUBIC)
        return np.asarray(resized)[self.top : self.top + self.height]

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """[height, width]: the value of the pixel in which each new pixel's centre falls."""
        rows = (np.arange(self.top, self.top + self.height) + 0.5) * self.old_height / self.full_height
        columns = (np.arange(self.width) + 0.5) * self.old_width / self.width
        return depth[np.ix_(rows.astype(int), columns.astype(int))]

    def intrinsics(self, k: np.ndarray) -> np.ndarray:
        """K for the new pixels; corners lie half a pixel outside the centres: u' + 0.5 = s (u + 0.5)."""
        x, y = self.width / self.old_width, self.full_height / self.old_height
        return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2 - self.top], [0, 0, 1]]) @ k


def _load_with_cameras(folder: Path, width: int, patch_size: int, max_views: int | None) -> Scene:
    path = folder / "cameras.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}.") from error
    scale = _field(record, "depth_scale", path)
    views = _field(record, "views", path)
    if not isinstance(views, list) or not views:
        raise InputError(f"{str(path)!r}: 'views' must be a list of at least one view.")
    if not isinstance(scale, int | float) or not scale > 0:
        raise InputError(f"{str(path)!r}: 'depth_scale' must be a positive number, got {scale!r}.")
    chosen = _choose(list(enumerate(views)), max_views)
    resizing, images, depths, intrinsics, extrinsics = None, [], [], [], []
    for index, view in chosen:
        where = f"views[{index}]."
        size = _field(view, "width", path, where), _field(view, "height", path, where)
        photo = _read_photo(folder / str(_field(view, "image", path, where)))
        depth = _read_depth(folder / str(_field(view, "depth", path, where)))
        resizing = resizing or _Resizing(photo.size, width, patch_size)
        for name, found in (("image", photo.size), ("depth", depth.shape[::-1])):
            expected = (resizing.old_width, resizing.old_height)
            if found != size or found != expected:
                raise InputError(
                    f"{str(path)!r}: {where}{name} has {found[0]} x {found[1]} pixels, but width and height "
                    f"say {size[0]} x {size[1]} and the first view has {expected[0]} x {expected[1]}; "
                    "all must be equal."
                )
        images.append(resizing.photo(photo))
        depths.append(resizing.depth(depth / scale))
        intrinsics.append(resizing.intrinsics(_matrix(view, "K", (3, 3), path, where)))
        extrinsics.append(_matrix(view, "world_to_camera", (4, 4), path, where)[:3])
    known = (torch.from_numpy(np.stack(arrays)).float() for arrays in (extrinsics, intrinsics, depths))
    return Scene(str(record.get("scene", folder.resolve().name)), _to_tensor(images), *known)


def _read_photo(path: Path) -> Image.Image:
    """RGB as stored; an EXIF orientation is ignored, since the cameras describe the stored pixels."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read photo {str(path)!r}: {error}; replace or remove it.") from error


def _read_depth(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            depth = np.asarray(file).astype(np.float64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read depth map {str(path)!r}: {error}.") from error
    if depth.ndim != 2:
        raise InputError(
            f"depth map {str(path)!r} must be one 16-bit channel, got {depth.shape[2]} channels."
        )
    return depth


def _field(record: Any, name: str, path: Path, where: str = "") -> Any:
    if not isinstance(record, dict) or name not in record:
        raise InputError(f"{str(path)!r} has no field '{where}{name}'.")
    return record[name]


def _matrix(record: Any, name: str, shape: tuple[int, int], path: Path, where: str) -> np.ndarray:
    values = _field(record, name, path, where)
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != shape or not np.isfinite(matrix).all():
        raise InputError(f"{str(path)!r}: '{where}{name}' must be {shape[0]} x {shape[1]} finite numbers.")
    return matrix


def _choose(items: list, max_views: int | None) -> list:
    """At most `max_views` of the items, evenly spaced, the first and the last among them."""
    if max_views is None or max_views >= len(items):
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, max_views)]


def _check_max_views(max_views: int | None) -> None:
    if max_views is not None and max_views < 1:
        raise InputError(f"max_views must be at least 1, got {max_views}.")


def _to_tensor(photos: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().float() / 255
