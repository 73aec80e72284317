"""Token merging around global attention after FastVGGT (arXiv 2509.02560), written from the published method.

Kept are special tokens, all patches of the first view, and the most distinctive patches of each other view.
Of the rest one patch in each region of a view, drawn at random, is a destination, as are those of the first
view; the others are merged into the destination most like them, by the mean. Attention runs on what is left,
and each merged token gets its destination's output. Nothing is learnt.

Where the description leaves a choice: tokens are compared by the cosine of their keys, all heads together
(ToMe, arXiv 2210.09461, does so), and a patch is distinctive when its key is unlike the mean key of its view.
Merged are q, k and v after qk-norm and RoPE, and keys of merged tokens get no weight for their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import TokenLayout, find_backbone
from ..config import Checked
from ..patch import HeSSHandle, apply_processors

SIMILARITY_BYTES = 2**28  # of similarities held at once


@dataclass(frozen=True)
class TokenMergingConfig(Checked):
    """How many tokens are merged. The density is the measured share of scores: (T - merged)² / T²."""

    merged_share: float = 0.5  # of all T tokens; less where what must stay leaves less, as in a single view
    salient_share: float = 0.1  # of the patches of each view but the first, kept as they are
    region_size: int = 2  # patches a side of a region; larger where the share asked for needs it
    seed: int = 0  # of the destinations
    dense_layers: tuple[int, ...] = ()  # indices among the global layers that merge nothing
    dense_below_tokens: int = 0  # sequences of fewer tokens than this merge nothing

    def __post_init__(self) -> None:
        self._in_unit_interval("merged_share", "salient_share")
        self._positive_int("region_size")
        self._positive_int("seed", "dense_below_tokens", at_least=0)
        self._layer_indices("dense_layers")

    @classmethod
    def at_density(cls, density: float, **settings: Any) -> Self:
        """The setting whose attention computes this share of the scores in the layers that merge."""
        return replace(cls(**settings), merged_share=1 - math.sqrt(density))


@dataclass(frozen=True)
class Roles:
    """Which tokens may be merged, and into what: indices into the global sequence."""

    destinations: Tensor  # [num_destinations]; patches of the first view, then one in each region of others
    candidates: Tensor  # [V - 1, N']: the other patches, view by view
    num_salient: int  # how many candidates of each view stay
    num_merged: int  # how many tokens are merged in all


@lru_cache(maxsize=2)
def assign_roles(
    layout: TokenLayout, config: TokenMergingConfig, device: torch.device | str = "cpu"
) -> Roles:
    """Draw destinations and count what is merged; the same for every layer, as the layout is.

    Drawn on the CPU, so that all devices get the same, and kept on `device`: no layer copies them again.
    """
    rows, columns = layout.grid
    patches, size = layout.patches_per_view, config.region_size
    wanted = round(config.merged_share * layout.num_tokens)

    def sources(size: int) -> tuple[int, int]:
        others = patches - -(-rows // size) * -(-columns // size)
        salient = min(math.floor(config.salient_share * patches), others)
        return salient, (layout.num_views - 1) * (others - salient)

    while sources(size)[1] < wanted and size < max(rows, columns):
        size += 1
    num_salient, available = sources(size)
    start = torch.arange(1, layout.num_views) * layout.tokens_per_view
    offset = 0 if layout.special_last else layout.num_special_tokens
    is_destination = _drawn(layout, size, config.seed)  # [V - 1, N]
    order = is_destination.int().argsort(dim=1, stable=True)  # in each view first the others
    index = order + (start + offset)[:, None]
    others = patches - int(is_destination[:1].sum())
    first = torch.arange(patches) + offset
    return Roles(
        destinations=torch.cat([first, index[:, others:].flatten()]).to(device),
        candidates=index[:, :others].to(device),
        num_salient=num_salient,
        num_merged=min(wanted, available),
    )


def _drawn(layout: TokenLayout, size: int, seed: int) -> Tensor:
    """One random patch in each region of size x size, smaller at the ends, in all views but the first."""
    rows, columns = layout.grid
    region = (torch.arange(rows)[:, None] // size) * -(-columns // size) + torch.arange(columns) // size
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(layout.num_views - 1, rows * columns, generator=generator)
    best = draw.new_zeros(len(draw), int(region.max()) + 1)
    region = region.flatten().expand_as(draw)
    best.scatter_reduce_(1, region, draw, "amax")
    return draw == best.gather(1, region)


@torch.no_grad()
def merged_positions(k: Tensor, layout: TokenLayout, roles: Roles) -> Tensor:
    """Where each token is after merging.

    Args:
        k: [B, H, T, D] keys.
        layout: of the T tokens.
        roles: of them, on the device of k.

    Returns:
        [B, T] int64 in [0, T - num_merged): the tokens that stay keep their order, and a merged one has the
        position of its destination.
    """
    features = F.normalize(k.transpose(1, 2).flatten(2).float(), dim=-1)  # [B, T, H D]
    sources = _sources(k, layout, roles)
    targets = features[:, roles.destinations].mT
    rows = max(1, SIMILARITY_BYTES // (4 * len(k) * targets.shape[-1]))
    parts = [
        (features.gather(1, part[..., None].expand(-1, -1, features.shape[-1])) @ targets).max(-1)
        for part in sources.split(rows, dim=1)
    ]
    similarity, nearest = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    chosen = similarity.argsort(dim=1, descending=True, stable=True)[:, : roles.num_merged]
    merged = sources.gather(1, chosen)
    stays = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device).scatter(1, merged, False)
    position = stays.cumsum(1) - 1
    destination = roles.destinations[nearest.gather(1, chosen)]
    return position.scatter(1, merged, position.gather(1, destination))


def _sources(k: Tensor, layout: TokenLayout, roles: Roles) -> Tensor:
    """[B, num_sources] candidates without the salient ones: those least like the mean key of their view."""
    in_views = k[:, :, : layout.num_views * layout.tokens_per_view].unflatten(2, (layout.num_views, -1))
    skipped = 0 if layout.special_last else layout.num_special_tokens
    patches = in_views[:, :, 1:, skipped : skipped + layout.patches_per_view]
    mean = patches.float().mean(3).transpose(1, 2).flatten(2)  # [B, V - 1, H D]
    features = k[:, :, roles.candidates].permute(0, 2, 3, 1, 4).flatten(3).float()  # [B, V - 1, N', H D]
    likeness = F.cosine_similarity(features, mean[:, :, None], dim=-1)
    order = likeness.argsort(dim=-1, stable=True)[..., roles.num_salient :]
    return roles.candidates.expand(len(k), -1, -1).gather(2, order).flatten(1)


class TokenMergingProcessor:
    """Attention of one global layer on merged tokens; without any to merge it is dense, bit for bit."""

    def __init__(self, config: TokenMergingConfig) -> None:
        self.config = config
        self.density: Tensor | None = None  # [B, H] float64: scores computed / T², alike for all heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
        """From q, k, v [B, H, T, D] to outputs of the same shape.

        Sums are float32; on a GPU their order, and so the last bits, may differ from call to call.
        """
        roles = assign_roles(layout, self.config, q.device)
        total = layout.num_tokens
        num_merged = 0 if total < self.config.dense_below_tokens else roles.num_merged
        density = ((total - num_merged) / total) ** 2
        self.density = torch.full(q.shape[:2], density, dtype=torch.float64)
        if num_merged == 0:
            return F.scaled_dot_product_attention(q, k, v)
        position = merged_positions(k, layout, roles)
        q, k, v = (_merge(x, position, total - num_merged) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.gather(2, position[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[3]))


def _merge(x: Tensor, position: Tensor, num_left: int) -> Tensor:
    """Mean of the tokens at each position: [B, H, T, D] to [B, H, num_left, D]."""
    batch, heads, _, dim = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = torch.zeros(batch, heads, num_left, dim, device=x.device, dtype=dtype)
    sums = sums.scatter_add(2, position[:, None, :, None].expand_as(x), x.to(dtype))
    ones = torch.ones(position.shape, device=x.device)
    counts = torch.zeros(batch, num_left, device=x.device).scatter_add(1, position, ones)
    return (sums / counts[:, None, :, None]).to(x.dtype)


def merge_tokens(model: nn.Module, config: TokenMergingConfig) -> HeSSHandle:
    """Merge tokens in the global attentions of a loaded model, in place; `handle.remove()` gives it back.

    Raises:
        ValueError: a layer index out of range, or a model that `apply_processors` refuses.
        RuntimeError: the model already has sparse attention.
    """
    layers = range(len(find_backbone(model).global_attentions(model)))
    for layer in config.dense_layers:
        if layer not in layers:
            raise ValueError(f"dense_layers has {layer}, this model has {len(layers)} global layers.")
    merging = {layer: TokenMergingProcessor(config) for layer in layers if layer not in config.dense_layers}
    return apply_processors(model, merging, config)
