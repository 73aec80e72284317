"""Queries and keys of a layer in every layout of tokens, and the blocks that they select."""

from __future__ import annotations

import torch
from hess_plugin.kernels.hess_attention import block_mask
from torch import Tensor

from hess_plugin.backbones.base import TokenLayout
from hess_plugin.config import HeSSConfig
from hess_plugin.sparsity import BlockPlan, BlockSelection

SMALL = HeSSConfig(q_block_size=16, kv_block_size=8)  # several blocks in few tokens
WEIGHTS = (0.5, 0.02, 0.2, 0.28)
# Patches per view: odd, not a multiple of the blocks, one view, no special tokens; special tokens after the
# patches, and tokens after all views.
LAYOUTS = [
    TokenLayout(3, 5, (5, 7)),
    TokenLayout(4, 5, (4, 8)),
    TokenLayout(1, 5, (3, 5)),
    TokenLayout(2, 1, (9, 9)),
    TokenLayout(2, 0, (5, 5)),
    TokenLayout(3, 1, (5, 7), special_last=True, num_trailing_tokens=1),
    TokenLayout(2, 0, (5, 5), special_last=True, num_trailing_tokens=1),
    TokenLayout(3, 17, (3, 5), num_trailing_tokens=2),
]


def tokens(layout: TokenLayout, batch: int = 1, heads: int = 4, seed: int = 0, scale: float = 2.0) -> Tensor:
    """q, k, v stacked: [3, B, H, T, D] float64; a scale above 1 makes attention peaked."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(
        3, batch, heads, layout.num_tokens, 8, generator=generator, dtype=torch.float64
    )


def is_special(layout: TokenLayout) -> Tensor:
    """[T] bool: tokens that are never masked."""
    index = torch.arange(layout.num_tokens)
    place = index % layout.tokens_per_view
    in_view = place >= layout.patches_per_view if layout.special_last else place < layout.num_special_tokens
    return in_view | (index >= layout.num_views * layout.tokens_per_view)


def patches(x: Tensor, layout: TokenLayout) -> Tensor:
    return x[..., ~is_special(layout), :]


def select(q: Tensor, k: Tensor, weights: tuple[float, ...] | None, config: HeSSConfig) -> BlockSelection:
    """The selection of all heads, however many come at a time."""
    parts = [selection for _, selection in BlockPlan(q, k, weights, config)]
    return BlockSelection(
        torch.cat([part.kv_num_blocks for part in parts], 1),
        torch.cat([part.kv_indices for part in parts], 1),
    )


def block_map(q: Tensor, k: Tensor, weights: tuple[float, ...] | None, config: HeSSConfig) -> Tensor:
    selection = select(q, k, weights, config)
    return block_mask(selection.kv_num_blocks, selection.kv_indices, -(-q.shape[2] // config.kv_block_size))
