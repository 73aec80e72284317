"""A coarse attention map: the probability of every (query block, key block) pair, from block means."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pool_blocks(x: Tensor, block: int) -> Tensor:
    """Mean of every run of `block` consecutive tokens.

    A last block with fewer tokens is the mean of the tokens it has.

    Args:
        x: [B, H, N, D], any floating dtype, N >= 1.
        block: Tokens per block, >= 1.

    Returns:
        [B, H, ⌈N / block⌉, D] float32, accumulated in float32.

    Example:
        >>> pool_blocks(torch.tensor([1.0, 3.0, 8.0]).view(1, 1, 3, 1), block=2).flatten()
        tensor([2., 8.])
    """
    whole = x.shape[2] // block * block
    pooled = x[:, :, :whole].unflatten(2, (-1, block)).mean(3, dtype=torch.float32) if whole else None
    if whole == x.shape[2] and pooled is not None:
        return pooled
    rest = x[:, :, whole:].mean(2, keepdim=True, dtype=torch.float32)
    return rest if pooled is None else torch.cat([pooled, rest], dim=2)


CHUNK_BYTES = 2**27  # of the scores, which exist beside the probabilities


def block_probs(q: Tensor, k: Tensor) -> Tensor:
    """Estimated attention of every query block to every key block: `softmax(pool(q) pool(k)ᵀ / √D)`.

    The map that the paper calls P^h (section 2, "SparseVGGT"), with the usual 1/√D that the formula there
    leaves out. Always float32, under autocast too: in half precision many blocks tie, and ties are broken by
    position.

    Args:
        q: [B, H, Mq, D] float32, `pool_blocks` of the patch queries of all views, after qk-norm and RoPE,
            without special tokens.
        k: [B, H, Mk, D] float32, of the patch keys, likewise.

    Returns:
        [B, H, Mq, Mk] float32; rows sum to 1.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k = q / math.sqrt(q.shape[-1]), k.transpose(-2, -1)
        rows = max(1, CHUNK_BYTES // (4 * q.shape[0] * q.shape[1] * k.shape[3]))
        if rows >= q.shape[2]:
            return (q @ k).softmax(dim=-1)
        probs = q.new_empty(*q.shape[:3], k.shape[3])
        for part, out in zip(q.split(rows, dim=2), probs.split(rows, dim=2), strict=True):
            out.copy_((part @ k).softmax(dim=-1))
        return probs
