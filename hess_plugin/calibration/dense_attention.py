"""Dense attention whose gradients are deterministic and fast, in the place of PyTorch's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.hess_attention import block_sparse_attention, resolve_backend
from ..kernels.hess_attention.tuning import triton_version

BLOCKS = (128, 64)  # queries and keys in a block: the sizes that the kernels' launch options are tuned for
MIN_TOKENS = 512  # with fewer, launches and half-empty last blocks weigh; expected, not measured
DTYPES = (torch.bfloat16, torch.float16)  # of float32 the kernels make three products


@contextmanager
def fast_gradients() -> Iterator[None]:
    """Let `F.scaled_dot_product_attention` attend by the Triton kernels where that is faster; then as before.

    PyTorch's FlashAttention computes deterministic gradients at half its rate. In `hess_attention` every sum
    has one writer anyway, so block-sparse attention over all blocks gives them at full rate: the same bits
    every time. Taken are calls without mask, dropout or causality, of 16-bit queries, keys and values of one
    shape [B, H, T, D], at least `MIN_TOKENS` long, where "auto" means Triton (see `resolve_backend`). All
    others reach PyTorch as they were made.

    The function itself is replaced, for the whole process: torch's modes hold in one thread, and autograd
    recomputes activations in threads of its own. Lists are made once per shape and kept until the end.
    """
    original = F.scaled_dot_product_attention
    lists = functools.cache(full_lists)

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        plain = attn_mask is None and not dropout_p and not is_causal
        qkv = _as_autocast(query, key, value)
        if plain and scale in (None, query.shape[-1] ** -0.5) and _is_faster(*qkv):
            counts_and_indices = lists(qkv[0].shape[:3], query.device)
            return block_sparse_attention(
                *qkv, *counts_and_indices, q_block_size=BLOCKS[0], kv_block_size=BLOCKS[1]
            )
        return original(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def full_lists(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Every key block for every row of queries, as `block_sparse_attention` takes it.

    The kernels want contiguous lists: 6 MB for 16 heads of 27,480 tokens.

    Args:
        shape: B, H and T.
        device: of the queries.

    Returns:
        Counts [B, H, Mq] and indices [B, H, Mq, Mk], int32.
    """
    *heads, tokens = shape
    rows, width = (-(-tokens // block) for block in BLOCKS)
    counts = torch.full((*heads, rows), width, dtype=torch.int32, device=device)
    indices = torch.arange(width, dtype=torch.int32, device=device)
    return counts, indices.expand(*heads, rows, width).contiguous()


def kernel_versions(device: torch.device) -> dict[str, str]:
    """What decides the bits of `fast_gradients` beside torch: Triton's version, where its kernels run."""
    runs = resolve_backend("auto", device, DTYPES[0], 64, *BLOCKS) == "triton"
    return {"triton": triton_version()} if runs else {}


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast makes of the inputs of PyTorch's attention; it leaves float64 alone."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _is_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the Triton kernels run here, and pay."""
    return (
        q.ndim == 4
        and q.shape == k.shape == v.shape
        and q.shape[2] >= MIN_TOKENS
        and q.dtype in DTYPES
        and q.dtype == k.dtype == v.dtype
        and resolve_backend("auto", q.device, q.dtype, q.shape[3], *BLOCKS) == "triton"
    )
