"""Dense heads (DPT): tokens of four layers to maps of the size of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import at_least_float32

POSITION_SCALE = 0.1
# `interpolate` fails above about 2^31 elements; larger results are made in parts along the batch.
MAX_RESIZE_ELEMENTS = 1_610_612_736


class ResidualConvUnit(nn.Module):
    """Two convolutions around a skip that carries ReLU(x), not x: the published weights were trained so."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, rows, cols] to the same shape."""
        x = x.relu()
        return self.conv2(self.conv1(x).relu()) + x


class FeatureFusion(nn.Module):
    """Adds a finer map to a coarse one and enlarges the sum; the coarsest stage has nothing to add to."""

    def __init__(self, features: int, coarsest: bool = False) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if not coarsest:
            self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor, size: Sequence[int], finer: Tensor | None = None) -> Tensor:
        """Maps [N, features, ., .], `finer` of the same shape as `x`, to [N, features, *size]."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        # The original enlarges first. A convolution of single pixels commutes with that, on fewer pixels.
        return resize(self.out_conv(self.resConfUnit2(x)), size)


class Scratch(nn.Module):
    """The convolutions of a dense head behind its four stages."""

    def __init__(
        self, features: int, channels: Sequence[int], out_features: int, output_dim: int | None
    ) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(width, features, 3, padding=1, bias=False) for width in channels
        )
        self.refinenet1 = FeatureFusion(features)
        self.refinenet2 = FeatureFusion(features)
        self.refinenet3 = FeatureFusion(features)
        self.refinenet4 = FeatureFusion(features, coarsest=True)
        self.output_conv1 = nn.Conv2d(features, out_features, 3, padding=1)
        if output_dim is not None:
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(out_features, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, output_dim, 1)
            )

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Maps of the four stages, fine to coarse, to [N, out_features, 8·rows, 8·cols]."""
        convs = (self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn)
        l1, l2, l3, l4 = (conv(x) for conv, x in zip(convs, stages, strict=True))
        x = self.refinenet4(l4, l3.shape[-2:])
        x = self.refinenet3(x, l2.shape[-2:], l3)
        x = self.refinenet2(x, l1.shape[-2:], l2)
        x = self.refinenet1(x, [2 * side for side in l1.shape[-2:]], l1)
        return self.output_conv1(x)


class DptFeatures(nn.Module):
    """Dense prediction transformer: tokens of four layers to one feature map per view."""

    def __init__(
        self,
        dim: int,
        features: int,
        channels: Sequence[int],
        out_features: int,
        *,
        output_dim: int | None = None,
        position_maps: bool = False,
    ) -> None:
        super().__init__()
        self.position_maps = position_maps
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, 1) for width in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(features, channels, out_features, output_dim)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Patch tokens of four layers, each [N, rows·cols, 2C], to a map [N, out_features, *size]."""
        aspect = grid[1] / grid[0]  # of patches, and so of the image
        stages = []
        for tokens, project, resize_layer in zip(layers, self.projects, self.resize_layers, strict=True):
            x = self.norm(tokens.to(self.norm.weight.dtype)).transpose(1, 2).unflatten(2, grid)
            stages.append(resize_layer(self._add_position(project(x), aspect)))
        x = resize(self.scratch(stages), size)
        return self._add_position(x, aspect)

    def _add_position(self, x: Tensor, aspect: float) -> Tensor:
        if not self.position_maps:
            return x
        return x + POSITION_SCALE * position_map(x.shape[1], x.shape[-2:], aspect, x.device).to(x.dtype)


class DptHead(DptFeatures):
    """Dense head that predicts a quantity and its confidence per pixel.

    `activation` turns the raw channels into the quantity: `torch.exp` for depth, `inverse_log` for points.
    """

    def __init__(
        self,
        dim: int,
        features: int,
        channels: Sequence[int],
        output_dim: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        channels_out = output_dim + 1  # the last is the confidence
        super().__init__(dim, features, channels, features // 2, output_dim=channels_out, position_maps=True)
        self.activation = activation

    def forward(  # type: ignore[override]
        self, layers: Sequence[Tensor], grid: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """As for `DptFeatures`, to prediction [N, *size, output_dim] and confidence [N, *size], above 1."""
        x = self.scratch.output_conv2(super().forward(layers, grid, size))
        x = at_least_float32(x).movedim(1, -1)
        return self.activation(x[..., :-1]), 1 + x[..., -1].exp()


def inverse_log(x: Tensor) -> Tensor:
    """sign(x)·(exp|x| - 1): small near 0, exponential far away, of either sign."""
    return x.sign() * x.abs().expm1()


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing [N, K, ., .] to [N, K, *size] with the corner pixels' centres kept in the corners."""
    parts = x.shape[0] * x.shape[1] * size[0] * size[1] // MAX_RESIZE_ELEMENTS + 1
    interpolate = ResizeByProducts.apply if x.is_cuda and x.requires_grad else _interpolate
    resized = [interpolate(part, tuple(size)) for part in x.chunk(parts)]
    return resized[0] if len(resized) == 1 else torch.cat(resized)


def _interpolate(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class ResizeByProducts(torch.autograd.Function):
    """`_interpolate` with a gradient of two matrix products, which add up in the same order every time.

    PyTorch's own on GPUs adds atomically, in any order (14 % of the time that a training step of the small
    model took), or, asked for a reproducible one, sorts one index per element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
        ctx.source_size = x.shape[-2:]
        return _interpolate(x, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, cols = (
            interpolation_weights(source, target, grad.device).to(grad.dtype)
            for source, target in zip(ctx.source_size, grad.shape[-2:], strict=True)
        )
        return rows.mT @ (grad @ cols), None


def interpolation_weights(source: int, target: int, device: torch.device) -> Tensor:
    """Share of each source pixel in each target pixel of a resized line, [target, source] float64."""
    at = torch.linspace(0, source - 1, target, dtype=torch.float64, device=device)
    pixels = torch.arange(source, dtype=torch.float64, device=device)
    return (1 - (at[:, None] - pixels).abs()).clamp(min=0)


def position_map(channels: int, size: Sequence[int], aspect: float, device: torch.device) -> Tensor:
    """Sine embedding of the pixel positions of a map, [channels, rows, cols] float32.

    Convention: pixel centres lie in the rectangle of the image's aspect (width / height) with half diagonal
    1; a quarter of the channels each for sin x, cos x, sin y, cos y, with frequencies 100^(-k / quarter).
    """
    quarter = channels // 4
    frequency = 100.0 ** -(torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows, cols = size
    diagonal = (aspect**2 + 1) ** 0.5

    def waves(count: int, span: float) -> Tensor:
        edge = span * (count - 1) / count
        angles = frequency[:, None] * torch.linspace(-edge, edge, count, dtype=torch.float32, device=device)
        return torch.cat((angles.sin(), angles.cos()))  # [2·quarter, count]

    x = waves(cols, aspect / diagonal)[:, None, :].expand(-1, rows, -1)
    y = waves(rows, 1 / diagonal)[:, :, None].expand(-1, -1, cols)
    return torch.cat((x, y))
