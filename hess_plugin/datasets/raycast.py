"""Analytic ray casting of ellipsoids and boxes in a room, with procedural colours.

Everything is element-wise (a matrix product could run in TF32 on GPUs and blur the geometry), and every
device gives the same up to rounding. Each surface is a unit sphere or cube in a frame of its own.

Convention: OpenCV cameras as in `Scene`. Rays are (x, y, 1) in the camera frame, so the ray parameter is the
depth; x [B, 1, 1, width] and y [B, 1, height, 1] are their slopes. B scenes have N surfaces each: ellipsoids,
then boxes, then a box seen from inside, the room.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.05  # world units; nothing nearer to a camera is seen
ROOM_SIDES = 6  # each with a texture of its own, where all other surfaces have one: N + 5 textures in all


class Shapes(NamedTuple):
    """Surfaces: points p with |M (p - centre)| = 1, by the Euclidean or, for boxes, the maximum norm."""

    centre: Tensor  # [B, N, 3]
    to_unit: Tensor  # [B, N, 3, 3], the matrix M: world to the unit sphere or cube; its rows are orthogonal
    num_ellipsoids: int
    has_room: Tensor  # [B] bool


class Texture(NamedTuple):
    """Two colours mixed by a pattern, sharpened and clamped, of waves that bend one another; light, exposure.

    Positions p are those of the unit sphere or cube. Wave k adds `amplitude · sin(angle_k)`, where
    `angle_k = wave · p + phase + bend · sin(angle_{k-1})`.
    """

    color: Tensor  # [B, N + 5, 3] where the pattern is 0
    change: Tensor  # [B, N + 5, 3] from there to where it is 1
    wave: Tensor  # [B, N + 5, waves, 6]: wave vector in radians, phase, amplitude, bend
    light: Tensor  # [B, 3] unit vector towards the light
    ambient: Tensor  # [B, 1] share of light that comes from everywhere
    background: Tensor  # [B, 3] colour where nothing is seen
    gain: Tensor  # [B, V, 3] exposure and white balance
    gamma: Tensor  # [B, 1] exponent of the final colours


class Cameras(NamedTuple):
    """Where rays start and go."""

    position: Tensor  # [B, V, 3]
    rotation: Tensor  # [B, V, 3, 3], camera to world
    x: Tensor  # [B, 1, 1, width]
    y: Tensor  # [B, 1, height, 1]


def rotate(rotation: Tensor, vector: Tensor) -> Tensor:
    """Matrices [..., 3, 3] applied to vectors [..., 3], exactly also where matrix products round to TF32."""
    return (rotation * vector[..., None, :]).sum(-1)


def cast_rays(shapes: Shapes, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Depth [B, V, height, width] of the first surface along each ray, inf for none, and its number (int64).

    Objects are seen from outside, the room from inside.

    Example:
        A camera in the middle of a room of half extents 2 looks at a wall:

        >>> eye, ahead = torch.eye(3).expand(1, 1, 3, 3), torch.zeros(1, 1, 1, 1)
        >>> room = Shapes(torch.zeros(1, 1, 3), eye / 2, 0, torch.ones(1) > 0)
        >>> depth, surface = cast_rays(room, Cameras(torch.zeros(1, 1, 3), eye, ahead, ahead))
        >>> depth.item(), surface.item()
        (2.0, 0)
    """
    origin, direction = _in_unit_frames(shapes, cameras)
    count = shapes.num_ellipsoids
    ellipsoid = _meet_ellipsoid(origin[:, :, :count], direction[:, :, :count])
    enter, leave = _meet_box(origin[:, :, count:], direction[:, :, count:])
    box = torch.where(enter < leave, enter, math.inf)[:, :, :-1]
    room = torch.where(shapes.has_room[:, None, None, None, None], leave[:, :, -1:], math.inf)
    depth = torch.cat([ellipsoid, box, room], 2)
    depth = torch.where(depth > NEAR, depth, math.inf)  # also where it is NaN
    nearest = depth.min(2)
    return nearest.values, nearest.indices


def _in_unit_frames(shapes: Shapes, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Origin [B, V, N, 3, 1, 1] and direction [B, V, N, 3, height, width] of rays in each surface's frame."""
    to_unit = shapes.to_unit[:, None]
    origin = rotate(to_unit, cameras.position[:, :, None] - shapes.centre[:, None])[..., None, None]
    right, down, ahead = (
        rotate(to_unit, cameras.rotation[:, :, None, :, column])[..., None, None] for column in range(3)
    )
    x, y = cameras.x[:, :, None, None], cameras.y[:, :, None, None]
    return origin, right * x + (down * y + ahead)  # one sum over all rays; its terms are small


def _meet_box(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube [-1, 1]³; enter > leave if they miss it. Axis 3: coordinates."""
    first, second = (-1 - origin) / direction, (1 - origin) / direction
    return torch.minimum(first, second).amax(3), torch.maximum(first, second).amin(3)


def _meet_ellipsoid(origin: Tensor, direction: Tensor) -> Tensor:
    """Where rays enter the unit sphere; NaN if they miss it. Axis 3: coordinates."""
    length = (direction * direction).sum(3)
    middle = -(origin * direction).sum(3) / length
    # By the middle of the chord: the b² - ac of the usual formula cancels badly from far away.
    closest = origin + middle[:, :, :, None] * direction
    return middle - ((1 - (closest * closest).sum(3)) / length).sqrt()


def shade(shapes: Shapes, texture: Texture, cameras: Cameras, depth: Tensor, surface: Tensor) -> Tensor:
    """Photos [B, V, 3, height, width] in [0, 1] of what `cast_rays` found, by texture, light and exposure."""
    count = shapes.centre.shape[1]
    seen = depth.isfinite()[..., None]
    slope = torch.stack(torch.broadcast_tensors(cameras.x, cameras.y, torch.ones_like(cameras.x)), -1)
    ray = rotate(cameras.rotation[:, :, None, None], slope)
    distance = torch.where(seen, depth[..., None], 1.0)
    point = cameras.position[:, :, None, None] + distance * ray - _look_up(shapes.centre, surface)
    to_unit = _look_up(shapes.to_unit, surface)
    point = rotate(to_unit, point)

    reach, axis = point.abs().max(-1)
    side = 2 * axis + (point.gather(-1, axis[..., None])[..., 0] > 0)
    color = _paint(texture, point, surface + torch.where(surface == count - 1, side, 0))

    face = (point.abs() >= reach[..., None]) * point.sign()
    normal = torch.where((surface < shapes.num_ellipsoids)[..., None], point, face)
    normal = F.normalize(rotate(to_unit.mT, normal), dim=-1)  # the gradient of the surface's norm
    normal = torch.where((normal * ray).sum(-1, keepdim=True) > 0, -normal, normal)  # the room, from inside
    lit = (normal * texture.light[:, None, None, None]).sum(-1, keepdim=True).clamp(min=0)
    ambient = texture.ambient[:, None, None, None]
    color = color * (ambient + (1 - ambient) * lit)
    color = torch.where(seen, color, texture.background[:, None, None, None])
    color = (color * texture.gain[:, :, None, None]).clamp(1e-4, 1) ** texture.gamma[:, None, None, None]
    return color.movedim(-1, 2)


def _paint(texture: Texture, point: Tensor, number: Tensor) -> Tensor:
    """Colours [B, V, height, width, 3] of points [..., 3] in the frames of surfaces with these textures."""
    pattern, bent = torch.zeros_like(point[..., 0]), torch.zeros_like(point[..., 0])
    for k in range(texture.wave.shape[2]):
        wave = _look_up(texture.wave[:, :, k], number)
        angle = (wave[..., :3] * point).sum(-1) + wave[..., 3] + wave[..., 5] * bent
        bent = angle.sin()
        pattern = pattern + wave[..., 4] * bent
    share = (0.5 + pattern).clamp(0, 1)[..., None]
    return _look_up(texture.color, number) + share * _look_up(texture.change, number)


def _look_up(table: Tensor, number: Tensor) -> Tensor:
    """Rows of each scene's table: [B, N, ...] and [B, V, height, width] to [B, V, height, width, ...]."""
    scenes, rows = table.shape[:2]
    first = rows * torch.arange(scenes, device=table.device)[:, None, None, None]
    return table.flatten(0, 1)[number + first]
