"""Datasets, each yielding `Scene`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from .base import Dataset, PhotoDataset, UnusableView, View
from .folder import load_scene
from .scene import Scene
from .synthetic import synthetic_scene

__all__ = [
    "DATASETS",
    "Dataset",
    "PhotoDataset",
    "Scene",
    "UnusableView",
    "View",
    "load_scene",
    "open_dataset",
    "synthetic_scene",
]

# Name -> module and class.
_CLASSES = {
    "synthetic": ("synthetic", "SyntheticDataset"),
    "folder": ("folder", "FolderDataset"),
    "co3d": ("co3d", "Co3dDataset"),
    "dtu": ("dtu", "DtuDataset"),
}
DATASETS = tuple(_CLASSES)


def open_dataset(
    name: str, *, root: str | Path | None, image_width: int, patch_size: int, **options: Any
) -> Dataset:
    """A dataset by name.

    Args:
        name: one of `DATASETS`.
        root: folder of the data; None for "synthetic", which has none.
        image_width: of the loaded photos, pixels, a multiple of `patch_size`.
        patch_size: of the model, pixels.
        options: of the dataset's class, such as `subset` of "co3d".

    Raises:
        InputError: the name is unknown, the root is missing, cannot be read or holds no usable scene, or an
            option does not fit.
    """
    if name not in _CLASSES:
        raise InputError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}.")
    if (root is None) != (name == "synthetic"):
        raise InputError(
            f"a root was given for {name!r}, which has none." if root else f"dataset {name!r} needs a root."
        )
    module, class_name = _CLASSES[name]
    place = {} if root is None else {"root": Path(root)}
    dataset = getattr(import_module(f".{module}", __name__), class_name)(
        **place, image_width=image_width, patch_size=patch_size, **options
    )
    if not dataset.scene_ids():
        raise InputError(_no_scene(dataset))
    return dataset


def _no_scene(dataset: Dataset) -> str:
    examples = [f"{scene_id}: {reason}" for scene_id, reason in sorted(dataset.skipped.items())[:3]]
    return (
        f"{dataset.name} has no usable scene, {len(dataset.skipped)} skipped"
        f"{' (' + '; '.join(examples) + ')' if examples else ''}."
    )
