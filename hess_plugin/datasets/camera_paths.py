"""Where the cameras of a procedural scene stand and where they look, from uniform random numbers.

Cameras of the data set go along an arc around the z axis, from a sideways step to a full turn, and look at
its middle, or past it, or straight ahead. In training some go through the room in other ways, as people do.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from .interior import between, unit_vector
from .raycast import Cameras

GROUPS = 3  # of cameras that visit places


class CameraPath(IntEnum):
    """How cameras go through a scene."""

    ARC = 0  # around its middle, looking at it
    WALK = 1  # straight, looking to any side
    VISIT = 2  # to some places, looking around at each


def camera_radius(path: Tensor, own: Tensor) -> Tensor:
    """Distances from the origin of cameras with these numbers of their own [B, V]."""
    return between((path[:, :1] + own) / 2, 2.0, 4.4)


def camera_elevation(path: Tensor, own: Tensor) -> Tensor:
    """Angles above the stage, radians, likewise; low ones are the more frequent."""
    return between((0.7 * path[:, 1:2] + 0.3 * own) ** 1.5, 0.1, 1.05)


def place_cameras(
    path: Tensor,
    of_view: dict[str, Tensor],
    image_size: tuple[int, int],
    orbit_span: Tensor,
    kind: Tensor,
    field_of_view: Tensor,
) -> tuple[Cameras, Tensor]:
    """Cameras on their paths, and their intrinsics [B, V, 3, 3].

    Args:
        path: numbers [B, 8] of a scene that define its path.
        of_view: those of views [B, V, n], by name.
        image_size: (height, width) in pixels.
        orbit_span, kind, field_of_view: [B], see `SceneSettings`.
    """
    span = orbit_span[:, None]
    place = (of_view["order"][..., 0].argsort(1) + of_view["azimuth"][..., 0]) / of_view["order"].shape[1]
    position, ahead = _follow_arc(path, span, place, of_view)
    for other, follow in {CameraPath.WALK: _walk_along_chord, CameraPath.VISIT: _visit_places}.items():
        other_position, other_ahead = follow(path, span, place, of_view)
        chosen = kind.eq(other)[:, None, None]
        position = torch.where(chosen, other_position, position)
        ahead = torch.where(chosen, other_ahead, ahead)
    rotation = _look_along(ahead, 0.4 * (2 * of_view["roll"][..., 0] - 1) ** 3)

    height, width = image_size
    focal = (width / 2) / torch.tan(field_of_view[:, None] / 2)  # [B, 1]
    columns, rows = (torch.arange(n, device=focal.device) - (n - 1) / 2 for n in (width, height))
    x, y = columns / focal[..., None, None], rows[:, None] / focal[..., None, None]
    none, one = torch.zeros_like(focal), torch.ones_like(focal)
    u, v = (one * ((n - 1) / 2) for n in (width, height))
    intrinsics = torch.stack([focal, none, u, none, focal, v, none, none, one], -1).unflatten(-1, (3, 3))
    return Cameras(position, rotation, x, y), intrinsics.expand(-1, place.shape[1], -1, -1)


def _follow_arc(
    path: Tensor, span: Tensor, place: Tensor, of_view: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Positions [B, V, 3] around the z axis, `place` in [0, 1) of the span, and where cameras look."""
    start, side, spread, tilt = (path[:, i, None] for i in (2, 4, 5, 6))
    own_radius, own_elevation = of_view["radius"][..., 0], of_view["elevation"][..., 0]
    azimuth = start + span / (2 * math.pi) * place
    position = camera_radius(path, own_radius)[..., None] * unit_vector(
        azimuth, camera_elevation(path, own_elevation).sin()
    )
    middle = unit_vector(start + span / (4 * math.pi), torch.zeros_like(start))[..., :2]
    aside, above = (2 * of_view["target"] - 1).split([2, 1], -1)
    # On a short arc, some scenes' cameras look straight ahead rather than at one point.
    along = (side * (1 - span / 3).clamp(min=0))[..., None]
    aside = between(spread**2, 0.1, 1.2)[..., None] * aside + along * (position[..., :2] - 3.2 * middle)
    target = torch.cat([aside, between(tilt, -0.5, 0.6)[..., None] + 0.4 * above], -1)
    return position, target - position


def _walk_along_chord(
    path: Tensor, span: Tensor, place: Tensor, of_view: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """As `_follow_arc`, straight and level; cameras look to any side and turn slowly, whatever the motion."""
    start, side, turn, tilt = (path[:, i, None] for i in (2, 4, 5, 6))
    span = span.clamp(max=math.pi) / (2 * math.pi)
    height = camera_elevation(path, torch.zeros_like(start)).sin()
    radius = camera_radius(path, torch.zeros_like(start))[..., None]
    first, last = radius * unit_vector(start, height), radius * unit_vector(start + span, height)
    position = first + place[..., None] * (last - first)
    position = position + 0.1 * (2 * of_view["target"] - 1)
    inward = start + span / 2 + 0.5
    heading = inward + 0.25 * (2 * side - 1) + 0.15 * (2 * turn - 1) * (2 * place - 1)
    heading = heading + 0.03 * (2 * of_view["radius"][..., 0] - 1)
    down = between(tilt, -0.1, 0.55) + 0.1 * (2 * of_view["elevation"][..., 0] - 1)
    return position, unit_vector(heading, -down.sin())


def _visit_places(
    path: Tensor, span: Tensor, place: Tensor, of_view: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """As `_follow_arc`, in groups: those of a group take a few steps through the room and turn to and fro.

    Groups stand one after the other along at least half of a turn. In many scenes all cameras are about as
    high and tilted as one another: people hold them before their eyes.
    """
    group = (GROUPS * place).long().clamp(max=place.shape[1] - 1)[..., None]
    of_group = {
        name: numbers.gather(1, group.expand(-1, -1, numbers.shape[-1])) for name, numbers in of_view.items()
    }
    along = (group[..., 0] + of_group["azimuth"][..., 0]) / GROUPS
    azimuth = path[:, 2, None] + span.clamp(min=math.pi) / (2 * math.pi) * along
    height = camera_elevation(path, of_group["elevation"][..., 0]).sin()
    middle = camera_radius(path, of_group["radius"][..., 0])[..., None] * unit_vector(azimuth, height)
    steps = between(path[:, 5, None], 0.0, 3.0) * (GROUPS * place % 1 - 0.5)
    bearing = of_group["roll"][..., 0]
    position = middle + steps[..., None] * unit_vector(bearing, torch.zeros_like(bearing))
    position = position + 0.15 * (2 * of_view["target"] - 1)
    farthest = camera_radius(path, torch.ones_like(azimuth))  # the room clears this
    inside = (farthest / position[..., :2].norm(dim=-1)).clamp(max=1.0)[..., None]
    unlike = path[:, 6, None] ** 2
    height = _nearer_mean(position[..., 2], unlike)
    position = torch.cat([inside * position[..., :2], height[..., None]], -1)
    aside, above = (2 * of_group["target"] - 1).split([2, 1], -1)
    x, y, z = (torch.cat([1.2 * aside, 0.5 * above], -1) - middle).unbind(-1)
    turn = 0.2 * math.pi * (2 * of_view["radius"][..., 0] - 1)
    flat = torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], -1)
    away = flat.norm(dim=-1)
    slope = (z + 0.3 * (2 * of_view["elevation"][..., 0] - 1)) / away
    return position, torch.cat([flat / away[..., None], _nearer_mean(slope, unlike)[..., None]], -1)


def _nearer_mean(values: Tensor, share: Tensor) -> Tensor:
    """Values [B, V] that differ from their mean over the views by this share [B, 1] of what they did."""
    return values.mean(1, keepdim=True).lerp(values, share)


def _look_along(direction: Tensor, roll: Tensor) -> Tensor:
    """Rotations [..., 3, 3], camera to world, of cameras that look along `direction`, rolled from upright."""
    ahead = F.normalize(direction, dim=-1)
    x, y, _ = ahead.unbind(-1)
    right = F.normalize(torch.stack([y, -x, torch.zeros_like(x)], -1), dim=-1)  # ahead × up
    down = torch.linalg.cross(ahead, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, ahead], -1)
