"""What every dataset offers: scenes with ids, chosen by seed, each loaded with views drawn by seed.

Draws are by hash: ids are put in the order of SHA-256 of seed, place and id. So a draw depends on nothing but
these (no library's generator, no other scene), a larger draw holds the smaller one, and an id that is missing
leaves the order of all others.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .resizing import Resizing
from .scene import Scene


class UnusableView(Exception):
    """A view that is there but shows nothing (a frame blacked out by the publisher); the text says why."""


@dataclass(frozen=True)
class View:
    """One photo as stored, with its ground truth; conventions as in `Scene`."""

    image: np.ndarray  # [h, w, 3] uint8
    extrinsics: np.ndarray  # [3, 4] float64, world to camera
    intrinsics: np.ndarray  # [3, 3] float64, pixels of `image`, integers at pixel centres
    depth: np.ndarray | None = None  # [h', w'] float64, 0 = unknown; of the image's aspect, if not its size


class Dataset(ABC):
    """Scenes with ids.

    Args:
        image_width: of the loaded photos, pixels, a multiple of `patch_size`.
        patch_size: of the model, pixels.
        min_views: scenes with fewer views are skipped.

    Attributes:
        settings: all that decides which scenes, views and pixels count, as JSON; it holds no absolute path.
        skipped: scenes that cannot be used, as far as the annotations alone tell, with the reason.

    Raises:
        InputError: a number that does not fit.
    """

    name: ClassVar[str]
    root: Path | None = None  # folder of the data, where it is in one

    def __init__(self, *, image_width: int, patch_size: int, min_views: int = 1) -> None:
        check_size(image_width, patch_size)
        if min_views < 1:
            raise InputError(f"min_views must be at least 1, got {min_views}.")
        self.image_width, self.patch_size, self.min_views = image_width, patch_size, min_views
        self.settings: dict[str, Any] = {
            "image_width": image_width,
            "patch_size": patch_size,
            "min_views": min_views,
        }
        self.skipped: dict[str, str] = {}

    @abstractmethod
    def scene_ids(self) -> list[str]:
        """Scenes that can be used, sorted."""

    @abstractmethod
    def load(self, scene_id: str, num_views: int | None, seed: int) -> Scene:
        """A scene with so many views (None: all), drawn by seed; the first is the reference view.

        Raises:
            InputError: there is no such scene, it has too few usable views, or one of its files is damaged.
        """

    def check_scene(self, scene_id: str) -> None:
        """Raise InputError if a scene was skipped, or there is none of this id."""
        if scene_id in self.skipped:
            raise InputError(f"scene {scene_id!r} of {self.name} cannot be used: {self.skipped[scene_id]}.")
        if scene_id not in self.scene_ids():
            raise InputError(f"{self.name} has no scene {scene_id!r}.")

    def choose(self, num_scenes: int, seed: int) -> list[str]:
        """Ids of so many scenes drawn by seed, sorted; all of them if there are not more."""
        return sorted(draw(self.scene_ids(), seed, self.name)[:num_scenes])


class PhotoDataset(Dataset):
    """Scenes made of photos that are read one by one."""

    @abstractmethod
    def view_ids(self, scene_id: str) -> list[str]:
        """Ids of the views of a usable scene, each once."""

    @abstractmethod
    def read_view(self, scene_id: str, view_id: str) -> View:
        """One view as stored.

        Raises:
            UnusableView: it shows nothing; another should take its place.
            InputError: one of its files is missing or damaged.
        """

    def read_cloud(self, scene_id: str) -> np.ndarray | None:
        """Known points [N, 3] of the scene's world; None if the dataset was not opened for them."""
        return None

    def load(self, scene_id: str, num_views: int | None, seed: int) -> Scene:
        """See `Dataset.load`; views are read in the order of the draw until enough are usable."""
        if num_views is not None and num_views < 1:
            raise InputError(f"num_views must be at least 1, got {num_views}.")
        self.check_scene(scene_id)
        ids = self.view_ids(scene_id)
        return self._read(scene_id, draw(ids, seed, self.name, scene_id), num_views)

    def load_views(self, scene_id: str, view_ids: Sequence[str]) -> Scene:
        """A scene with these views in this order, as a protocol names them; the first is the reference view.

        Raises:
            InputError: there is no such scene or view, one shows nothing, or one of its files is damaged.
        """
        self.check_scene(scene_id)
        unknown = [view_id for view_id in view_ids if view_id not in self.view_ids(scene_id)]
        if unknown or not view_ids:
            name = repr(unknown[0]) if unknown else "of no name"
            raise InputError(f"scene {scene_id!r} of {self.name} has no view {name}.")
        return self._read(scene_id, view_ids, len(view_ids))

    def _read(self, scene_id: str, view_ids: Sequence[str], num_views: int | None) -> Scene:
        """The scene of the first `num_views` (None: all) of these views that are usable."""
        views: dict[str, View] = {}
        unusable: dict[str, str] = {}
        for view_id in view_ids:
            if len(views) == num_views:
                break
            try:
                view = self.read_view(scene_id, view_id)
            except UnusableView as reason:
                unusable[view_id] = str(reason)
            else:
                views[view_id] = resize_view(view, self.image_width, self.patch_size)
        if len(views) < (num_views or 1):
            reasons = "".join(f"; {view_id}: {reason}" for view_id, reason in list(unusable.items())[:1])
            raise InputError(
                f"scene {scene_id!r} of {self.name} has {len(views)} usable views of {len(view_ids)}, "
                f"{num_views or 1} are needed{reasons}."
            )
        scene = stack_views(scene_id, views, self.read_cloud(scene_id))
        return replace(scene, unusable_views=unusable)


def check_size(image_width: int, patch_size: int) -> None:
    """Raise InputError unless the width is a positive multiple of the patch size."""
    if image_width < 1 or patch_size < 1 or image_width % patch_size:
        raise InputError(
            f"the image width must be a positive multiple of the patch size {patch_size}, got {image_width}."
        )


def draw(ids: list[str], seed: int, *place: str) -> list[str]:
    """The ids in an order that depends on seed and place; see the top of this file."""
    return sorted(ids, key=lambda each: sha256(json.dumps([seed, *place, each]).encode()).digest())


def resize_view(view: View, width: int, patch_size: int) -> View:
    """The view at the size that a model takes: photo, intrinsics and depth (see `Resizing`)."""
    height, old_width = view.image.shape[:2]
    resizing = Resizing((height, old_width), width, patch_size)
    depth = None if view.depth is None else resizing.depth(view.depth)
    intrinsics = resizing.intrinsics(view.intrinsics)
    return View(resizing.photo(view.image), view.extrinsics, intrinsics, depth)


def stack_views(name: str, views: dict[str, View], cloud: np.ndarray | None = None) -> Scene:
    """The scene of resized views by id; a view without depth has 0 everywhere, if any has depth.

    Raises:
        InputError: the views differ in size.
    """
    shapes = {view_id: view.image.shape[:2] for view_id, view in views.items()}
    first, shape = next(iter(shapes.items()))
    for view_id, other in shapes.items():
        if other != shape:
            raise InputError(
                f"scene {name!r}: view {view_id!r} has {other[1]} x {other[0]} pixels after resizing, view "
                f"{first!r} {shape[1]} x {shape[0]}; all photos of a scene must have one aspect."
            )
    depths = [view.depth for view in views.values()]
    images = torch.from_numpy(np.stack([view.image for view in views.values()]))
    return Scene(
        name,
        images.permute(0, 3, 1, 2).contiguous().float() / 255,
        extrinsics=_to_tensor([view.extrinsics for view in views.values()]),
        intrinsics=_to_tensor([view.intrinsics for view in views.values()]),
        depth=None
        if all(depth is None for depth in depths)
        else _to_tensor([np.zeros(shape) if depth is None else depth for depth in depths]),
        cloud=None if cloud is None else torch.from_numpy(np.asarray(cloud)).float(),
        view_ids=tuple(views),
    )


def _to_tensor(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float()
