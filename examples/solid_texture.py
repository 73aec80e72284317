"""Detail as photos have it, hung on points in space, so that all photos of a scene agree on it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hess_plugin.datasets.raycast import rotate
from hess_plugin.geometry.cameras import quaternion_to_rotation

SIDE, LEAVES = 128, 3000
SMALLEST, LARGEST = 2.5, 24.0  # radii in voxels, before each axis is stretched
# Voxels in units of the mean distance, where a pixel covers some 0.009: of the finest detail, as of gravel or
# fabric, each photo shows other samples.
FINEST, COARSEST = 0.001, 0.03
PATCH = 0.03  # voxels of the places that have detail, likewise


@functools.cache
def dead_leaves(device: torch.device) -> Tensor:
    """A volume [SIDE³, 3] in [0, 1) of ellipsoids and boxes that hide one another, periodic; always the same.

    Its plane sections have edges, round and straight, and plain areas of all sizes, as photos do: radii of
    density r^-3 ("Occlusion models for natural images", Lee, Mumford and Huang, 2001), then each axis
    stretched by a factor of its own.
    """
    generator = torch.Generator().manual_seed(0)
    share, grey = torch.rand(2, LEAVES, generator=generator)
    radii = (SMALLEST**-2 + share * (LARGEST**-2 - SMALLEST**-2)) ** -0.5  # the inverse of its distribution
    radii = radii.sort(descending=True).values  # small ones last, so that they are seen
    tint = 0.05 * torch.randn(LEAVES, 3, generator=generator)
    colors = (grey[:, None] + tint).clamp(0, 0.999)
    centres = torch.randint(SIDE, (LEAVES, 3), generator=generator)
    halves = radii[:, None] * (0.5 * torch.randn(LEAVES, 3, generator=generator)).exp().clamp(0.4, 2.5)
    volume = torch.full((SIDE, SIDE, SIDE, 3), 0.5)
    for leaf, (half, centre, color) in enumerate(zip(halves, centres, colors, strict=True)):
        axes = (torch.arange(-int(h), int(h) + 1) for h in half)
        block = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        if leaf % 2:  # an ellipsoid; the others are boxes
            block = block[(block / half).square().sum(-1) <= 1]
        x, y, z = ((block + centre) % SIDE).unbind(-1)
        volume[x, y, z] = color
    return volume.flatten(0, 2).to(device)


def add_detail(images: Tensor, points: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, three in four scenes with surfaces cut from `dead_leaves`, turned and scaled otherwise in each.

    Of space, patches of all sizes stay as they are: in photos plain things lie beside rough ones.

    Args:
        images: [B, V, 3, height, width] in [0, 1].
        points: [B, V, height, width, 3] that pixels show, 1 being their mean distance from the first camera.
        known: [B, V, height, width] bool; other pixels stay as they are.
        generator: on the device of the images.

    Returns:
        [B, V, 3, height, width] in [0, 1].
    """
    scenes, device = len(images), images.device
    size, strength = torch.rand(2, scenes, 1, 1, 1, 1, generator=generator, device=device)
    turn = torch.randn(scenes, 1, 1, 1, 4, generator=generator, device=device)
    shift = SIDE * torch.rand(scenes, 1, 1, 1, 3, generator=generator, device=device)
    turned = rotate(quaternion_to_rotation(turn), points)
    places = turned / (FINEST * (COARSEST / FINEST) ** size) + shift
    rough = known & (leaves_at(turned / PATCH + shift.roll(1, -1))[..., 0] > 0.4)
    strength = 0.9 * (4 * strength - 1).clamp(min=0) / 3  # none in a quarter of the scenes
    return torch.where(rough[:, :, None], carve(images, places, strength), images)


def carve(images: Tensor, places: Tensor, strength: Tensor | float) -> Tensor:
    """Photos with the detail at their pixels' places [B, V, height, width, 3] in voxels.

    At a strength of 1 (a number or [B, 1, 1, 1, 1]), colours are multiplied by 0.2 to 1.8, and clamped.
    """
    detail = leaves_at(places).movedim(-1, 2)
    return (images * (1 + strength * (1.6 * detail - 0.8))).clamp(0, 1)


def leaves_at(places: Tensor) -> Tensor:
    """Colours [..., 3] in [0, 1) of `dead_leaves` at places [..., 3] in voxels.

    Space is tiled with the volume, each tile moved otherwise: a pattern that repeats would mislead cameras.
    """
    places = places.floor().long()
    x, y, z = places.div(SIDE, rounding_mode="floor").unbind(-1)
    moved = (73856093 * x + 19349663 * y + 83492791 * z)[..., None]  # a hash of the tile
    x, y, z = ((places + torch.cat([moved, moved // 131, moved // 17161], -1)) % SIDE).unbind(-1)
    return dead_leaves(places.device)[(x * SIDE + y) * SIDE + z]
