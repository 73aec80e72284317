"""Track head: follows points of the first view through the other views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dpt_head import DptFeatures
from .layers import Mlp, at_least_float32, in_chunks

STRIDE = 2  # pixels of the image per cell of the feature maps
FEATURES = 128
HIDDEN = 384
LEVELS = 7  # of the correlation pyramid; each halves the feature maps
RADIUS = 4  # correlations are read on a (2·RADIUS + 1)² grid around each point
FLOW_CHANNELS = 64  # of the embedding of each flow coordinate
FLOW_SCALE = 518.0
NUM_VIRTUAL_TRACKS = 64
NUM_LAYERS = 6
MIN_IMAGE_SIDE = STRIDE * 2 ** (LEVELS - 1)  # pixels; the coarsest level then has one cell


class TrackBlock(nn.Module):
    """Self-attention block whose residual starts from the normalised input: the weights were trained so."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.attn = nn.MultiheadAttention(HIDDEN, num_heads=8, batch_first=True)
        self.mlp = Mlp(HIDDEN, 4 * HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, HIDDEN] to the same shape."""
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CrossTrackBlock(nn.Module):
    """As `TrackBlock`, but attends to a context."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.norm_context = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.cross_attn = nn.MultiheadAttention(HIDDEN, num_heads=8, batch_first=True)
        self.mlp = Mlp(HIDDEN, 4 * HIDDEN)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, N, HIDDEN] to the same shape; `context` is [B, M, HIDDEN]."""
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UpdateTransformer(nn.Module):
    """Attends over time within each track, and over tracks within each view by way of virtual tracks."""

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.virual_tracks = nn.Parameter(torch.zeros(1, NUM_VIRTUAL_TRACKS, 1, HIDDEN))  # spelled so
        self.input_norm = nn.LayerNorm(input_dim, eps=1e-5)
        self.input_transform = nn.Linear(input_dim, HIDDEN)
        self.output_norm = nn.LayerNorm(HIDDEN, eps=1e-5)
        self.flow_head = nn.Linear(HIDDEN, 2 + FEATURES)
        self.time_blocks = nn.ModuleList(TrackBlock() for _ in range(NUM_LAYERS))
        self.space_virtual_blocks = nn.ModuleList(TrackBlock() for _ in range(NUM_LAYERS))
        self.space_point2virtual_blocks = nn.ModuleList(CrossTrackBlock() for _ in range(NUM_LAYERS))
        self.space_virtual2point_blocks = nn.ModuleList(CrossTrackBlock() for _ in range(NUM_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, V, input_dim] of N tracks to their updates [B, N, V, 2 + FEATURES]."""
        batch, num_tracks, num_views, _ = x.shape
        start = self.input_transform(self.input_norm(x))
        virtual = self.virual_tracks.expand(batch, -1, num_views, -1)
        x = torch.cat((start, virtual.to(start.dtype)), dim=1)
        layers = zip(
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        )
        for time_block, virtual_to_point, virtual_block, point_to_virtual in layers:
            x = time_block(x.flatten(0, 1)).unflatten(0, (batch, -1))
            points, virtual = x.transpose(1, 2).flatten(0, 1).split((num_tracks, NUM_VIRTUAL_TRACKS), dim=1)
            virtual = virtual_block(virtual_to_point(virtual, points))
            points = point_to_virtual(points, virtual)
            x = torch.cat((points, virtual), dim=1).unflatten(0, (batch, num_views)).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :num_tracks] + start))


class Tracker(nn.Module):
    """Moves points step by step to where the feature maps agree with the points' own features."""

    def __init__(self) -> None:
        super().__init__()
        input_dim = 2 * FLOW_CHANNELS + 4 + 2 * FEATURES
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, input_dim))  # first view, others
        self.corr_mlp = Mlp(LEVELS * (2 * RADIUS + 1) ** 2, HIDDEN, FEATURES)
        self.updateformer = UpdateTransformer(input_dim)
        self.fmap_norm = nn.LayerNorm(FEATURES, eps=1e-5)
        self.ffeat_norm = nn.GroupNorm(1, FEATURES)
        self.ffeat_updater = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(FEATURES, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(FEATURES, 1))

    def forward(
        self, features: Tensor, query_points: Tensor, iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps [B, V, FEATURES, rows, cols] and points [B, N, 2] of view 0 to their tracks.

        Returns positions [B, V, N, 2] (x, y) in pixels of the image, visibility and confidence in [0, 1],
        both [B, V, N]. In view 0 the point itself comes back.
        """
        dtype = self.fmap_norm.weight.dtype
        maps = at_least_float32(self.fmap_norm(features.movedim(2, -1).to(dtype))).movedim(-1, 2)
        start = query_points.to(maps.dtype) / STRIDE
        pyramid = _pyramid(maps.flatten(0, 1))
        num_views = maps.shape[1]
        coords = start[:, None].expand(-1, num_views, -1, -1)
        tracked = _sample(maps[:, 0], start[:, None]).permute(0, 2, 3, 1).expand(-1, num_views, -1, -1)
        constant = self._constant_input(start, maps.shape[-2:], num_views)
        for _ in range(iterations):
            coords = coords.detach()
            correlation = at_least_float32(self.corr_mlp(_correlation(pyramid, tracked, coords).to(dtype)))
            x = torch.cat((_flow_embedding(coords - coords[:, :1]), correlation, tracked), dim=-1) + constant
            update = at_least_float32(self.updateformer(x.to(dtype).transpose(1, 2)).transpose(1, 2))
            change = self.ffeat_norm(update[..., 2:].to(dtype).flatten(0, 2)).unflatten(0, update.shape[:3])
            tracked = tracked + self.ffeat_updater(change)
            coords = torch.cat((start[:, None], (coords + update[..., :2])[:, 1:]), dim=1)
        visibility, confidence = (
            at_least_float32(predictor(tracked.to(dtype))).sigmoid().squeeze(-1)
            for predictor in (self.vis_predictor, self.conf_predictor)
        )
        return STRIDE * coords, visibility, confidence

    def _constant_input(self, start: Tensor, size: Sequence[int], num_views: int) -> Tensor:
        """What every iteration adds to its input: where the point is, and whether the view is the first."""
        positions = _position_map(self.query_ref_token.shape[-1], size).to(start.device, start.dtype)
        place = _sample(positions.expand(len(start), -1, -1, -1), start[:, None]).transpose(1, 3).squeeze(2)
        first, other = self.query_ref_token.to(start.dtype).split(1, dim=1)
        views = torch.cat((first, other.expand(-1, num_views - 1, -1)), dim=1)
        return place[:, None] + views[:, :, None]


class TrackHead(nn.Module):
    """Feature maps at half the size of the images, and the tracker on them."""

    def __init__(self, dim: int, channels: Sequence[int], position_maps: bool) -> None:
        super().__init__()
        self.feature_extractor = DptFeatures(dim, FEATURES, channels, FEATURES, position_maps=position_maps)
        self.tracker = Tracker()

    def forward(
        self,
        layers: Sequence[Tensor],
        grid: tuple[int, int],
        size: tuple[int, int],
        query_points: Tensor,
        iterations: int,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patch tokens of four layers, each [B·V, rows·cols, 2C], and points [B, N, 2], to their tracks."""
        half = (size[0] // STRIDE, size[1] // STRIDE)
        features = in_chunks(self.feature_extractor, layers, chunk_size, grid, half)
        return self.tracker(features.unflatten(0, (len(query_points), -1)), query_points, iterations)


def _sample(maps: Tensor, points: Tensor, padding_mode: str = "border") -> Tensor:
    """Bilinear values [B, K, N, M] of maps [B, K, rows, cols] at points [B, N, M, 2], (x, y) in cells."""
    rows, cols = maps.shape[-2:]
    cells = points.new_tensor((max(cols - 1, 1), max(rows - 1, 1)))
    return F.grid_sample(maps, 2 * points / cells - 1, padding_mode=padding_mode, align_corners=True)


def _pyramid(maps: Tensor) -> list[Tensor]:
    """The maps [B·V, FEATURES, rows, cols] at LEVELS sizes, each half the one before."""
    levels = [maps]
    while len(levels) < LEVELS:
        levels.append(F.avg_pool2d(levels[-1], 2, stride=2))
    return levels


def _correlation(pyramid: list[Tensor], tracked: Tensor, coords: Tensor) -> Tensor:
    """Agreement of each point's features [B, V, N, FEATURES] with the maps around it, [B, V, N, LEVELS·81].

    The maps are sampled before the product: by linearity the same as sampling a correlation volume, which
    would need far more memory. The offset in x is the slow index of the 81.
    """
    steps = torch.arange(-RADIUS, RADIUS + 1, dtype=coords.dtype, device=coords.device)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).flatten(0, 1)
    points = coords.flatten(0, 1)[:, :, None]
    features = tracked.flatten(0, 1)[:, :, None] / FEATURES**0.5
    levels = []
    for level, maps in enumerate(pyramid):
        around = _sample(maps, points / 2**level + offsets, padding_mode="zeros")
        levels.append((features @ around.transpose(1, 2)).squeeze(2))
    return torch.cat(levels, dim=-1).unflatten(0, coords.shape[:2])


def _flow_embedding(flow: Tensor) -> Tensor:
    """Interleaved sines and cosines of x and y, then the scaled flow twice: [..., 2] to [..., 132]."""
    even = torch.arange(0, FLOW_CHANNELS, 2, dtype=flow.dtype, device=flow.device)
    angles = flow[..., None] * (even * (1000 / FLOW_CHANNELS))
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)
    return torch.cat((waves, flow / FLOW_SCALE, flow / FLOW_SCALE), dim=-1)


def _position_map(channels: int, size: Sequence[int]) -> Tensor:
    """Sine embedding of the cells' positions, x then y: [1, channels, rows, cols], float32 on the CPU."""
    quarter = channels // 4
    frequency = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, cols = size

    def waves(count: int) -> Tensor:
        angles = frequency[:, None] * torch.arange(count, dtype=torch.float64)
        return torch.cat((angles.sin(), angles.cos())).float()

    x = waves(cols)[:, None, :].expand(-1, rows, -1)
    y = waves(rows)[:, :, None].expand(-1, -1, cols)
    return torch.cat((x, y))[None]
