"""The one form in which every dataset hands over a scene."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    cloud: Tensor | None = None  # [N, 3] float32, known points of the world, on no pixel grid
    view_ids: tuple[str, ...] = ()  # of each view in its dataset; by default "000", "001", ...
    unusable_views: dict[str, str] = field(default_factory=dict)  # drawn, but passed over: id -> reason

    def __post_init__(self) -> None:
        """Name the views, or check that each has one name."""
        names = tuple(self.view_ids) or tuple(f"{index:03d}" for index in range(len(self.images)))
        if len(names) != len(self.images):
            raise ValueError(f"scene {self.name!r} has {len(self.images)} views but {len(names)} view_ids.")
        object.__setattr__(self, "view_ids", names)

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
        chosen = {
            name: None if tensor is None else tensor[index.to(tensor.device)]
            for name, tensor in self._tensors().items()
            if name != "cloud"
        }
        names = tuple(self.view_ids[int(i)] for i in index)
        return replace(self, **chosen, view_ids=names)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        moved = {
            name: None if tensor is None else tensor.to(device) for name, tensor in self._tensors().items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in _TENSORS}


_TENSORS = ("images", "extrinsics", "intrinsics", "depth", "cloud")
