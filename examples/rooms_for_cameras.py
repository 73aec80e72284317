"""Procedural rooms photographed by the cameras of another scene: what its paths cost, whatever its looks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hess_plugin.datasets import Scene
from hess_plugin.datasets.interior import FIELDS, build_shapes, build_texture
from hess_plugin.datasets.raycast import Cameras
from hess_plugin.datasets.synthetic import photograph
from hess_plugin.geometry.cameras import camera_centers

REACH, HEIGHT = 3.5, 0.85  # world units: the farthest camera from the middle, all on average above the stage


def room_for_cameras(scene: Scene, seed: int) -> Scene:
    """The furnished room of a seed, seen by the scene's cameras: turned, moved and scaled as one.

    All photos have the first one's intrinsics.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(1, count, generator=generator) for name, count in FIELDS.items()}
    drawn["room"][:, 0] = 0  # there is one
    gains = torch.rand(1, len(scene.images), 4, generator=generator)
    position, rotation = place_upright(scene)
    assert scene.intrinsics is not None
    intrinsics = scene.intrinsics[:1].expand(len(position), -1, -1)
    (focal_x, _, u), (_, focal_y, v), _ = intrinsics[0].tolist()
    height, width = scene.images.shape[-2:]
    x, y = (torch.arange(width) - u) / focal_x, (torch.arange(height) - v) / focal_y
    cameras = Cameras(position[None], rotation[None], x.view(1, 1, 1, -1), y.view(1, 1, -1, 1))
    top, furnished = position[:, 2].max().view(1, 1), torch.ones(1, dtype=torch.bool)
    shapes = build_shapes(drawn, torch.full((1, 1), REACH), top, furnished)
    texture = build_texture(drawn, gains, shapes, furnished)
    batch = photograph(shapes, texture, cameras, intrinsics[None])
    return Scene(f"room {seed}", **{name: tensor[0] for name, tensor in batch._asdict().items()})


def place_upright(scene: Scene) -> tuple[Tensor, Tensor]:
    """Positions [V, 3] and rotations [V, 3, 3], camera to world, in a world where +z is up.

    Up is what the cameras' x axes are most nearly at right angles to: people hold cameras level. The z axis
    goes through the middle of the known points.
    """
    assert scene.extrinsics is not None
    right, down, _ = scene.extrinsics[..., :3].unbind(1)
    up = torch.linalg.svd(right).Vh[-1]
    up = -up if down.mean(0) @ up > 0 else up
    ahead = F.normalize(torch.linalg.cross(up, right[0]), dim=0)
    world = torch.stack([torch.linalg.cross(ahead, up), ahead, up])
    middle = scene.world_points[scene.mask].median(0).values
    position = (camera_centers(scene.extrinsics) - middle) @ world.mT
    position = position * (REACH / position[:, :2].norm(dim=-1).max())
    position[:, 2] += HEIGHT - position[:, 2].mean()
    return position, world @ scene.extrinsics[..., :3].mT
