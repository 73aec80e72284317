"""The one form in which every dataset hands over a scene."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..geometry.cameras import unproject_depth


@dataclass(frozen=True)
class Scene:
    """Photos of one scene with what is known of its geometry; `None` where nothing is known.

    Convention: OpenCV cameras (+x right, +y down, +z forward), `x_camera = R x_world + t` with
    `extrinsics = [R | t]`; pixel (u, v) = K x_camera / z with integer coordinates at pixel centres; depth is
    z along the optical axis in world units, 0 where unknown. World frame and unit are the dataset's own.
    """

    name: str
    images: Tensor  # [V, 3, height, width] float32 in [0, 1]
    extrinsics: Tensor | None = None  # [V, 3, 4] float32, world to camera
    intrinsics: Tensor | None = None  # [V, 3, 3] float32, pixels of `images`
    depth: Tensor | None = None  # [V, height, width] float32, 0 = unknown

    @property
    def has_ground_truth(self) -> bool:
        """Whether cameras and depth are known."""
        return self.extrinsics is not None and self.intrinsics is not None and self.depth is not None

    @property
    def mask(self) -> Tensor:
        """Pixels whose depth is known, [V, height, width] bool."""
        return self._known("depth") > 0

    @property
    def world_points(self) -> Tensor:
        """World point of every pixel, [V, height, width, 3]; meaningless outside `mask`."""
        return unproject_depth(self._known("depth"), self._known("extrinsics"), self._known("intrinsics"))

    def _known(self, name: str) -> Tensor:
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"scene {self.name!r} has no {name}; ground truth is needed here.")
        return value

    def select(self, views: Tensor | list[int]) -> Scene:
        """The scene restricted to some of its views, in the order given."""
        index = torch.as_tensor(views)
        return self._map(lambda tensor: tensor[index.to(tensor.device)])

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Scene:
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}
        changed: dict[str, Any] = {key: None if t is None else function(t) for key, t in known.items()}
        return replace(self, **changed)
