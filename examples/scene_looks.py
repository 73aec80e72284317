"""Textures, light, colours and contrast unlike any that is rendered, of scenes and of single photos."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from solid_texture import add_detail
from torch import Tensor

CHANGED = 0.8  # share of the scenes whose look is changed
LIGHT_WAVES = 4
SHADES = (5, 7)  # rows and columns of a photo that have light of their own
OVER_SCENE = {"dim": (1, 3, 4), "keepdim": True}  # of photos [B, V, 3, height, width], each channel apart


def change_look(images: Tensor, points: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, most scenes with another look; arguments and result as of `add_detail`.

    What belongs together still looks alike in all photos of a scene, so poses and depth stay as they are.
    """
    changed = add_detail(images, points, known, generator)
    changed = light_unevenly(changed, points, known, generator)
    changed = change_saturation(filter_randomly(changed, generator), generator)
    changed = change_contrast(changed, generator)
    chosen = torch.rand(len(images), 1, 1, 1, 1, generator=generator, device=images.device) < CHANGED
    return torch.where(chosen, changed, images)


def filter_randomly(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, half of the scenes through one random convolution each, by a random share.

    "Robust and generalizable visual representation learning via random convolutions", Xu et al., 2021. The
    mean and contrast of each channel over a scene stay as they are.
    """
    scenes = len(images)
    share = torch.rand(scenes, 1, 1, 1, 1, generator=generator, device=images.device)
    filters = torch.randn(scenes * 3, 3, 3, 3, generator=generator, device=images.device) / 27**0.5
    flat = images.transpose(0, 1).flatten(1, 2)  # the scenes are groups of channels
    flat = F.conv2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), filters, groups=scenes)
    share = (2 * share - 1).clamp(min=0)  # none in half of the scenes
    mixed = images.lerp(flat.unflatten(1, (scenes, 3)).transpose(0, 1), share)
    gain = images.std(**OVER_SCENE) / mixed.std(**OVER_SCENE).clamp(min=1e-3)
    return images.mean(**OVER_SCENE) + gain * (mixed - mixed.mean(**OVER_SCENE))


def light_unevenly(images: Tensor, points: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, half of the scenes with pools of light and shade that stay at their place; see `add_detail`.

    Like a sensor's, values may exceed 1 until `change_contrast` clamps them.
    """
    scenes, device = len(images), images.device
    strength, fineness = torch.rand(2, scenes, 1, 1, generator=generator, device=device)
    direction = torch.randn(scenes, 3, LIGHT_WAVES, generator=generator, device=device)
    phase = 2 * math.pi * torch.rand(scenes, 1, LIGHT_WAVES, generator=generator, device=device)
    waves = (points.flatten(1, 3) @ ((1 + 3 * fineness) * direction) + phase).cos()
    light = (1.2 * (2 * strength - 1).clamp(min=0) * waves.mean(-1, keepdim=True) * LIGHT_WAVES**0.5).exp()
    light = light.view_as(known[..., None]).movedim(-1, 2)
    return torch.where(known[:, :, None], images * light, images)


def change_saturation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, each scene with 0 to 1.2 times its colours; one in three is grey, and rooms hardly have any.

    Colours make it easy to find a place again in other photos: a model that only learns them fails on photos.
    """
    share = 1.8 * torch.rand(len(images), 1, 1, 1, 1, generator=generator, device=images.device) - 0.6
    grey = images.mean(2, keepdim=True)
    return grey + share.clamp(min=0) * (images - grey)


def change_contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, each scene's spread of brightness times 0.6 to 2.2; photos of rooms reach black and white."""
    gain = 0.6 * (2.2 / 0.6) ** torch.rand(len(images), 1, 1, 1, 1, generator=generator, device=images.device)
    mean = images.mean(**OVER_SCENE)
    return (mean + gain * (images - mean)).clamp(0, 1)


def expose_each(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos with exposures and white balances of their own, as automatic cameras choose them.

    Their logarithms have a standard deviation of up to 0.3 and 0.15, of each scene another share.
    """
    strength = torch.rand(len(images), 1, 1, 1, 1, generator=generator, device=images.device)
    exposure, balance = (
        torch.randn(*images.shape[:2], n, 1, 1, generator=generator, device=images.device) for n in (1, 3)
    )
    return (images * (strength * (0.3 * exposure + 0.15 * balance)).exp()).clamp(0, 1)


def shade_each(images: Tensor, generator: torch.Generator) -> Tensor:
    """Photos, in half of the scenes with smooth light and shade of their own, as gloss and glare give.

    Their logarithm has a standard deviation of up to 0.5, of each scene another.
    """
    scenes, views, _, *size = images.shape
    strength = 2 * torch.rand(scenes, 1, 1, 1, 1, generator=generator, device=images.device) - 1
    light = torch.randn(scenes * views, 1, *SHADES, generator=generator, device=images.device)
    light = F.interpolate(light, size, mode="bicubic").unflatten(0, (scenes, views))
    return (images * (0.5 * strength.clamp(min=0) * light).exp()).clamp(0, 1)
