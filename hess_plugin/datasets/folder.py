"""Scenes from folders: photos with the cameras and depth maps of `cameras.json`, or the paths of photos.

A scene folder holds `cameras.json`, and the photos and 16-bit depth maps that it names. Its fields are
`depth_scale` (depth = value / depth_scale) and `views`, a list of records with `image` and `depth` (paths in
the folder), `width` and `height` (pixels of both), `K` (3x3) and `world_to_camera` (4x4), as in `Scene`.
Beside them may lie `points.ply`, known points in the same world.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..errors import InputError
from .base import PhotoDataset, View, check_size, resize_view, stack_views
from .pixels import read_channel, read_photo
from .ply import read_ply_points
from .records import Record, read_json
from .scene import Scene

PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CAMERAS_FILE = "cameras.json"
POINTS_FILE = "points.ply"


class FolderDataset(PhotoDataset):
    """The scene folders below a root; a scene's id is its folder's name, a view's its place in `views`.

    Args:
        root: folder of scene folders.
        with_cloud: give `points.ply` as the scene's `cloud`; scenes without one are skipped.
        sizes: `image_width`, `patch_size` and `min_views` of `Dataset`.

    Raises:
        InputError: the root holds no scene, or a scene's `cameras.json` cannot be read.
    """

    name: ClassVar[str] = "folder"

    def __init__(self, root: Path, *, with_cloud: bool = False, **sizes: int) -> None:
        super().__init__(**sizes)
        self.settings["with_cloud"] = with_cloud
        self.root, self.with_cloud = root, with_cloud
        found = sorted(root.glob(f"*/{CAMERAS_FILE}"))
        if not found:
            raise InputError(_why_no_scene(root))
        self._records = {path.parent.name: _read_cameras(path.parent) for path in found}
        for scene_id, record in self._records.items():
            if len(record.views) < self.min_views:
                self.skipped[scene_id] = f"{len(record.views)} views, {self.min_views} are needed"
            elif with_cloud and not (record.folder / POINTS_FILE).exists():
                self.skipped[scene_id] = f"no {POINTS_FILE}"

    def scene_ids(self) -> list[str]:
        return [scene_id for scene_id in self._records if scene_id not in self.skipped]

    def view_ids(self, scene_id: str) -> list[str]:
        return [f"{index:03d}" for index in range(len(self._records[scene_id].views))]

    def read_view(self, scene_id: str, view_id: str) -> View:
        return _read_view(self._records[scene_id], int(view_id))

    def read_cloud(self, scene_id: str) -> np.ndarray | None:
        return read_ply_points(self._records[scene_id].folder / POINTS_FILE) if self.with_cloud else None


def load_scene(
    folder: str | Path, width: int = 518, patch_size: int = 14, max_views: int | None = None
) -> Scene:
    """The scene in a folder with `cameras.json`, at the size that a model takes (see `Resizing`).

    Args:
        folder: see above.
        width: pixels, a multiple of `patch_size`.
        patch_size: pixels.
        max_views: keep at most so many views, evenly spaced; None keeps all.

    Raises:
        InputError: naming the file, and in `cameras.json` the field, that is missing or does not fit.
    """
    check_size(width, patch_size)
    _check_max_views(max_views)
    record = _read_cameras(Path(folder))
    chosen = _choose(list(range(len(record.views))), max_views)
    views = {f"{index:03d}": resize_view(_read_view(record, index), width, patch_size) for index in chosen}
    return stack_views(record.name, views)


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
    found = _photos(folder)
    if not found:
        raise InputError(
            f"no photos in {str(folder)!r} nor in its folder 'images'; "
            f"known endings: {', '.join(PHOTO_SUFFIXES)}."
        )
    return _choose(found, max_views)


def _photos(folder: Path) -> list[Path]:
    for place in (folder, folder / "images"):
        found = sorted(path for path in place.glob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
        if found:
            return found
    return []


def _why_no_scene(root: Path) -> str:
    if (root / CAMERAS_FILE).exists():
        return f"{str(root)!r} is itself a scene; give the folder that holds it."
    if _photos(root):
        return (
            f"{str(root)!r} holds photos without cameras and depth; calibration needs the truth: give a "
            f"folder of scenes, each with a {CAMERAS_FILE}."
        )
    return f"{str(root)!r} holds no scene: none of its folders has a {CAMERAS_FILE}."


@dataclass(frozen=True)
class _Cameras:
    """Content of a `cameras.json`; its views are checked when they are read."""

    folder: Path
    name: str
    depth_scale: float
    views: list
    where: str


def _read_cameras(folder: Path) -> _Cameras:
    record = read_json(folder / CAMERAS_FILE)
    scale = record.field("depth_scale")
    views = record.field("views")
    if not isinstance(views, list) or not views:
        raise InputError(f"{record.where}: 'views' must be a list of at least one view.")
    if not isinstance(scale, int | float) or not scale > 0:
        raise InputError(f"{record.where}: 'depth_scale' must be a positive number, got {scale!r}.")
    name = str(record.values.get("scene", folder.resolve().name))
    return _Cameras(folder, name, float(scale), views, record.where)


def _read_view(cameras: _Cameras, index: int) -> View:
    view = Record(cameras.views[index], f"{cameras.where}, views[{index}]")
    size = view.field("height"), view.field("width")
    photo = read_photo(cameras.folder / view.text("image"))
    depth = read_channel(cameras.folder / view.text("depth"))
    for name, found in (("image", photo.shape[:2]), ("depth", depth.shape)):
        if found != size:
            raise InputError(
                f"{view.where}: {name!r} has {found[1]} x {found[0]} pixels, but width and height say "
                f"{size[1]} x {size[0]}."
            )
    extrinsics, intrinsics = view.numbers("world_to_camera", (4, 4)), view.numbers("K", (3, 3))
    for name, matrix in (("world_to_camera", extrinsics), ("K", intrinsics)):
        if not np.isfinite(matrix).all():
            raise InputError(f"{view.where}: {name!r} must be finite.")
    return View(photo, extrinsics[:3], intrinsics, depth.astype(np.float64) / cameras.depth_scale)


def _choose(items: list, max_views: int | None) -> list:
    """At most `max_views` of the items, evenly spaced, the first and the last among them."""
    if max_views is None or max_views >= len(items):
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, max_views)]


def _check_max_views(max_views: int | None) -> None:
    if max_views is not None and max_views < 1:
        raise InputError(f"max_views must be at least 1, got {max_views}.")
