"""The same by PyTorch's FlexAttention: another fast implementation, to compare results and times with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import block_mask


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    *,
    special_k: Tensor | None = None,
    special_v: Tensor | None = None,
    q_block_size: int = 128,
    kv_block_size: int = 64,
    lse: Tensor | None = None,
) -> Tensor:
    """`block_sparse_attention` by FlexAttention, compiled on a GPU.

    1. Put special keys in front, padded to whole blocks that every row lists; pad the patch keys likewise.
    2. Whole blocks go into the lists without a mask, padded ones into those with one.

    Raises:
        ValueError: if `lse` is given.
    """
    if lse is not None:
        raise ValueError("backend 'flex' gives no log-sum-exp; call it without lse, or use another backend.")
    from torch.nn.attention.flex_attention import BlockMask

    tokens, block = q.shape[2], kv_block_size
    num_special = 0 if special_k is None else special_k.shape[2]
    special_blocks = -(-num_special // block)
    if special_k is not None and special_v is not None:
        k = torch.cat([F.pad(special_k, (0, 0, 0, -num_special % block)), k], dim=2)
        v = torch.cat([F.pad(special_v, (0, 0, 0, -num_special % block)), v], dim=2)
    k, v = (F.pad(x, (0, 0, 0, -tokens % block)) for x in (k, v))
    key = torch.arange(k.shape[2], device=q.device)
    patch = key - special_blocks * block
    real = (key < num_special) | ((patch >= 0) & (patch < tokens))
    listed = block_mask(kv_num_blocks, kv_indices, -(-tokens // block))
    listed = F.pad(listed, (special_blocks, 0), value=True)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Without compilation PyTorch looks at this alone and at no list.
        return real[key] & listed[b, h, query // q_block_size, key // block]

    whole = real.view(-1, block).all(1)
    mask = BlockMask.from_kv_blocks(
        *_lists(listed & ~whole),
        *_lists(listed & whole),
        BLOCK_SIZE=(q_block_size, block),
        mask_mod=visible,
        seq_lengths=(tokens, k.shape[2]),
    )
    # The tiles of its kernel must divide the blocks of the lists.
    tiles = {"BLOCK_M": min(q_block_size, 128), "BLOCK_N": min(block, 64)} if q.is_cuda else None
    return _function(q.is_cuda)(q, k, v, block_mask=mask, kernel_options=tiles)


def _lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """A map of blocks as counts and ascending indices."""
    return mask.sum(-1).int(), mask.int().argsort(dim=-1, descending=True, stable=True).int()


@functools.cache
def _function(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    function: Callable[..., Any] = flex_attention
    return torch.compile(function) if compiled else function
