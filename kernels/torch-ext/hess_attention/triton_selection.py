"""Which blocks to attend to, found on the GPU without sorting and without waiting for the host.

A probability is never negative, so its float32 bits read as an integer have the same order. Each row is held
in registers once, and a threshold is found by bisection on that integer: 31 steps, exact, no tolerance.
The twins in plain PyTorch are `baseline_counts` and `select_blocks` of `hess_plugin.sparsity`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Widest map that one program holds: 2.1 million keys in blocks of 64; up to half of it without spills.
MAX_KV_BLOCKS = 32768
_ONE = tl.constexpr(0x3F800000)  # bits of 1.0, the largest probability


def pool_blocks(x: Tensor, block: int) -> Tensor:
    """Mean of every run of `block` consecutive tokens; a shorter last run is the mean of what it has.

    Args:
        x: [B, H, N, D], any floating dtype and strides.
        block: Tokens per block.

    Returns:
        [B, H, ⌈N / block⌉, D] float32; one pass over x, no copy of it in float32.
    """
    batch, heads, tokens, dim = x.shape
    pooled = x.new_empty(batch, heads, -(-tokens // block), dim, dtype=torch.float32)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _pool_kernel[(pooled.shape[2], batch * heads)](
            x,
            pooled,
            *x.stride(),
            heads,
            tokens,
            dim,
            block,
            BLOCK=triton.next_power_of_2(block),
            DIM=triton.next_power_of_2(dim),
        )
    return pooled


def count_blocks(probs: Tensor, min_count: int, cdf_threshold: float, cdf_rule: str) -> Tensor:
    """Blocks that each row keeps: the count needed by τ, and at least `min_count`.

    Args:
        probs: [..., Mk] float32, contiguous, rows summing to 1 and nowhere negative or NaN.
        min_count: at least 1; what the sparse ratio asks for.
        cdf_threshold: τ in [0, 1]; 0 leaves only `min_count`, and the map is not read.
        cdf_rule: "cover", the smallest count whose mass reaches τ; or "sparse-vggt", the blocks whose
            cumulative mass is at most τ + 1e-5.

    Returns:
        [...] int32 in [min_count, Mk]. Counts of the twin, up to one block where float32 sums taken in
        another order fall on the other side of τ.
    """
    counts = torch.full(probs.shape[:-1], min_count, dtype=torch.int32, device=probs.device)
    if cdf_threshold > 0:
        cover = cdf_rule == "cover"
        bound = (1 - cdf_threshold) * (1 + 1e-6) if cover else cdf_threshold + 1e-5
        grid, shape = _rows(probs)
        with torch.cuda.device_of(probs):
            _count_kernel[grid](probs, counts, probs.shape[-1], min_count, bound, COVER=cover, **shape)
    return counts


def select_blocks(probs: Tensor, counts: Tensor, kv_indices: Tensor | None = None) -> Tensor:
    """Ascending indices of the `counts` most probable blocks of every row; of equal ones the lowest index.

    Args:
        probs: [..., Mk] float32, contiguous, nowhere negative or NaN.
        counts: [...] int32 in [1, Mk].
        kv_indices: [..., Mk] int32, contiguous, to write to; None makes one.

    Returns:
        `kv_indices`; entries past a row's count are not written.
    """
    if kv_indices is None:
        kv_indices = torch.empty_like(probs, dtype=torch.int32)
    grid, shape = _rows(probs)
    with torch.cuda.device_of(probs):
        _select_kernel[grid](probs, counts, kv_indices, probs.shape[-1], **shape)
    return kv_indices


def _rows(probs: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """One program per row, and the width and number of warps that hold a row in registers."""
    width = probs.shape[-1]
    if probs.dtype != torch.float32 or not probs.is_contiguous():
        raise ValueError(
            f"probs must be contiguous float32, got {probs.dtype} with strides {probs.stride()}."
        )
    if width > MAX_KV_BLOCKS:
        raise ValueError(f"probs has {width} key blocks, at most {MAX_KV_BLOCKS} fit; use larger blocks.")
    block = max(64, triton.next_power_of_2(width))
    return (probs.numel() // width,), {"BLOCK": block, "num_warps": min(16, max(4, block // 1024))}


@triton.jit
def _pool_kernel(
    x_ptr, out_ptr, stride_b, stride_h, stride_n, stride_d, heads, tokens, dim, block,
    BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    index, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    offsets, columns = tl.arange(0, BLOCK), tl.arange(0, DIM)
    token = index * block + offsets
    inside = (offsets < block) & (token < tokens)
    base = x_ptr + row // heads * stride_b + row % heads * stride_h
    pointers = base + token[:, None].to(tl.int64) * stride_n + columns[None, :] * stride_d
    values = tl.load(pointers, mask=inside[:, None] & (columns < dim)[None, :], other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / tl.minimum(block, tokens - index * block)
    tl.store(out_ptr + (row * tl.num_programs(0) + index) * dim + columns, mean, mask=columns < dim)


@triton.jit
def _load_row(probs_ptr, row, width, BLOCK: tl.constexpr):
    """A row's probabilities (0 past its end) and their bits (-1 there, below every threshold)."""
    columns = tl.arange(0, BLOCK)
    values = tl.load(probs_ptr + row * width + columns, mask=columns < width, other=0.0)
    return values, tl.where(columns < width, values.to(tl.int32, bitcast=True), -1)


@triton.jit
def _fitting(mass, value, available):
    """How many of the available blocks of this probability fit into the mass that is left."""
    return tl.minimum(tl.maximum(mass, 0.0) / tl.maximum(value, 1e-38), available.to(tl.float32)).to(tl.int32)


@triton.jit
def _count_kernel(
    probs_ptr, counts_ptr, width, min_count, bound, COVER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    values, bits = _load_row(probs_ptr, row, width, BLOCK)
    if COVER:
        # The largest threshold below which the dropped mass is within the bound ...
        low, high = 0, _ONE + 1
        for _ in range(31):
            middle = (low + high + 1) // 2
            within = tl.sum(tl.where(bits < middle, values, 0.0)) <= bound
            low = tl.where(within & (middle <= high), middle, low)
            high = tl.where(within, high, tl.maximum(low, middle - 1))
        value = low.to(tl.float32, bitcast=True)
        dropped = tl.sum(tl.where(bits < low, values, 0.0))
        # ... and of the blocks that lie on it, as many as still fit are dropped too.
        spare = _fitting(bound - dropped, value, tl.sum((bits == low).to(tl.int32)))
        count = tl.sum((bits >= low).to(tl.int32)) - spare
    else:
        # The smallest threshold above which the kept mass is within the bound, then ties of the next value.
        low, high = 0, _ONE + 1
        for _ in range(31):
            middle = (low + high) // 2
            within = tl.sum(tl.where(bits >= middle, values, 0.0)) <= bound
            high = tl.where(within, middle, high)
            low = tl.where(within, low, tl.minimum(high, middle + 1))
        value = tl.maximum(high - 1, 0).to(tl.float32, bitcast=True)
        kept = tl.sum(tl.where(bits >= high, values, 0.0))
        spare = _fitting(bound - kept, value, tl.sum((bits == high - 1).to(tl.int32)))
        count = tl.sum((bits >= high).to(tl.int32)) + tl.where(high > 0, spare, 0)
    tl.store(counts_ptr + row, tl.minimum(tl.maximum(count, min_count), width))


@triton.jit
def _select_kernel(probs_ptr, counts_ptr, indices_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    wanted = tl.load(counts_ptr + row)
    _, bits = _load_row(probs_ptr, row, width, BLOCK)
    # The smallest threshold that not more than the wanted blocks reach.
    low, high = 0, _ONE + 1
    for _ in range(31):
        middle = (low + high) // 2
        fits = tl.sum((bits >= middle).to(tl.int32)) <= wanted
        high = tl.where(fits, middle, high)
        low = tl.where(fits, low, tl.minimum(high, middle + 1))
    above, tied = bits >= high, bits == high - 1
    # What is missing comes from the next lower value, lowest index first.
    missing = wanted - tl.sum(above.to(tl.int32))
    keep = above | (tied & (bits >= 0) & (tl.cumsum(tied.to(tl.int32), axis=0) <= missing))
    position = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.store(indices_ptr + row * width + position, tl.arange(0, BLOCK), mask=keep)
