"""Analytic ray casting of ellipsoids, boxes, a disc and a room, with procedural colours.

Everything is element-wise (a matrix product could run in TF32 on GPUs and blur the geometry), so
`torch.compile` fuses it into a few kernels, and every device gives the same up to rounding.

Convention: OpenCV cameras as in `Scene`. Rays are (x, y, 1) in the camera frame, so the ray parameter is the
depth; x [B, 1, 1, width] and y [B, 1, height, 1] are their slopes. B scenes have N surfaces each: N - 2
ellipsoids and boxes, then a disc, then a room around all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.05  # world units; nothing nearer to a camera is seen
BACKGROUND = 0.5  # grey of pixels that see nothing


class Shapes(NamedTuple):
    """Surfaces, each with a frame of its own."""

    is_box: Tensor  # [B, N] bool, else an ellipsoid; True for disc and room
    centre: Tensor  # [B, N, 3]
    rotation: Tensor  # [B, N, 3, 3], surface to world
    half: Tensor  # [B, N, 3] semi-axes or half extents; the disc's radius is its first
    has_room: Tensor  # [B] bool


class Texture(NamedTuple):
    """Colour = base + sum of sinusoids of the position in the surface's own frame; light and exposure."""

    base: Tensor  # [B, N, 3]
    wave: Tensor  # [B, N, waves, 3 colours, 3] wave vectors, radians per world unit
    phase: Tensor  # [B, N, waves, 3 colours]
    amplitude: Tensor  # [B, N, waves, 3 colours]
    light: Tensor  # [B, 3] unit vector towards the light
    ambient: Tensor  # [B, 1] share of light that comes from everywhere
    gain: Tensor  # [B, 3] exposure and white balance


class Cameras(NamedTuple):
    """Where rays start and go."""

    position: Tensor  # [B, V, 3]
    rotation: Tensor  # [B, V, 3, 3], camera to world
    x: Tensor  # [B, 1, 1, width]
    y: Tensor  # [B, 1, height, 1]


def rotate(rotation: Tensor, vector: Tensor) -> Tensor:
    """Rotations [..., 3, 3] applied to vectors [..., 3], exactly also where matrix products round to TF32."""
    return (rotation * vector[..., None, :]).sum(-1)


def cast_rays(shapes: Shapes, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Depth [B, V, height, width] of the first surface along each ray, inf for none, and its number (int64).

    Objects are seen from outside, the room from inside.

    Example:
        A camera in the middle of a room of half extents 1 looks at a wall:

        >>> none, eye = torch.zeros(1, 3, 3), torch.eye(3).expand(1, 3, 3, 3)
        >>> boxes, yes = torch.ones(1, 3) > 0, torch.ones(1) > 0
        >>> shapes = Shapes(boxes, none - 9, eye, none + 1, yes)
        >>> shapes.centre[:, 2] = 0
        >>> ahead = torch.zeros(1, 1, 1, 1)
        >>> depth, surface = cast_rays(shapes, Cameras(torch.zeros(1, 1, 3), eye[:, :1], ahead, ahead))
        >>> depth.item(), surface.item()
        (1.0, 2)
    """
    origin, direction = _in_surface_frames(shapes, cameras)
    half = shapes.half[:, None, ..., None, None]
    enter, leave = _meet_box(origin, direction, half)
    box = torch.where(enter < leave, enter, math.inf)[:, :, :-2]
    ellipsoid = _meet_ellipsoid((origin / half)[:, :, :-2], (direction / half)[:, :, :-2])
    objects = torch.where(shapes.is_box[:, None, :-2, None, None], box, ellipsoid)
    disc = _meet_disc(origin[:, :, -2], direction[:, :, -2], half[:, :, -2, 0])
    room = torch.where(shapes.has_room[:, None, None, None], leave[:, :, -1], math.inf)
    depth = torch.cat([objects, disc[:, :, None], room[:, :, None]], 2)
    depth = torch.where(depth > NEAR, depth, math.inf)  # also where it is NaN
    nearest = depth.min(2)
    return nearest.values, nearest.indices


def _in_surface_frames(shapes: Shapes, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Origin [B, V, N, 3, 1, 1] and direction [B, V, N, 3, height, width] of rays in each surface's frame."""
    to_surface = shapes.rotation[:, None].mT
    origin = rotate(to_surface, cameras.position[:, :, None] - shapes.centre[:, None])[..., None, None]
    right, down, ahead = (
        rotate(to_surface, cameras.rotation[:, :, None, :, column])[..., None, None] for column in range(3)
    )
    x, y = cameras.x[:, :, None, None], cameras.y[:, :, None, None]
    return origin, right * x + down * y + ahead


def _meet_disc(origin: Tensor, direction: Tensor, radius: Tensor) -> Tensor:
    """Where rays meet the disc in the plane z = 0; inf if they miss it."""
    t = -origin[:, :, 2] / direction[:, :, 2]
    at = origin[:, :, :2] + t[:, :, None] * direction[:, :, :2]
    return torch.where((at * at).sum(2) < radius**2, t, math.inf)


def _meet_box(origin: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a box around the origin; enter > leave if they miss. Axis 3: coordinates."""
    first, second = (-half - origin) / direction, (half - origin) / direction
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
    scenes, count = shapes.is_box.shape
    index = surface + count * torch.arange(scenes, device=surface.device)[:, None, None, None]

    def look_up(table: Tensor) -> Tensor:  # [B, N, ...] -> [B, V, height, width, ...]
        return table.flatten(0, 1)[index]

    seen = depth.isfinite()[..., None]
    slope = torch.stack(torch.broadcast_tensors(cameras.x, cameras.y, torch.ones_like(cameras.x)), -1)
    ray = rotate(cameras.rotation[:, :, None, None], slope)
    distance = torch.where(seen, depth[..., None], 1.0)
    point = cameras.position[:, :, None, None] + distance * ray - look_up(shapes.centre)
    to_world, half = look_up(shapes.rotation), look_up(shapes.half)
    point = rotate(to_world.mT, point)

    color = look_up(texture.base)
    for k in range(texture.wave.shape[2]):
        angle = rotate(look_up(texture.wave[:, :, k]), point) + look_up(texture.phase[:, :, k])
        color = color + look_up(texture.amplitude[:, :, k]) * angle.sin()

    relative = (point / half).abs()
    face = (relative >= relative.amax(-1, keepdim=True)) * point.sign()
    normal = torch.where(look_up(shapes.is_box)[..., None], face, point / half**2)
    upward = torch.arange(3, device=point.device) == 2
    normal = torch.where((surface == count - 2)[..., None], upward.to(point.dtype), normal)
    normal = F.normalize(rotate(to_world, normal), dim=-1)
    normal = torch.where((normal * ray).sum(-1, keepdim=True) > 0, -normal, normal)  # the room, from inside
    lit = (normal * texture.light[:, None, None, None]).sum(-1, keepdim=True).clamp(min=0)
    ambient = texture.ambient[:, None, None, None]
    color = color * (ambient + (1 - ambient) * lit) * texture.gain[:, None, None, None]
    return torch.where(seen, color.clamp(0, 1), BACKGROUND).movedim(-1, 2)
