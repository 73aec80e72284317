"""Queries and keys in fp8 (e4m3), for products at twice the rate: two passes, nothing waits for the host.

`reference.e4m3_operands` says what is computed, and why each head needs one scale only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import E4M3_MAX, LEAST_REACH

_ELEMENTS = 1 << 14  # per program
_MAX = tl.constexpr(E4M3_MAX)


class Ranges(NamedTuple):
    """What the tokens of each head span, channel by channel: [B, H, 1, D] float32 each."""

    mean: Tensor
    highest: Tensor
    lowest: Tensor

    def reach(self, centre: Tensor | float = 0.0) -> Tensor:
        """[B, H, 1, 1], the largest distance of an entry from the centre."""
        return torch.maximum(self.highest - centre, centre - self.lowest).amax(3, keepdim=True)


def e4m3_operands(
    q: Tensor, k: Tensor, special_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The twin of `reference.e4m3_operands`, up to the order of the sum in a head's mean key.

    Args:
        q: [B, H, N, D] contiguous, D a power of two.
        k: [B, H, N, D] contiguous.
        special_k: [B, H, Ns, D] contiguous or None.

    Returns:
        q, k and special_k in e4m3, and [B, H] float32, what their products are to be multiplied by.
    """
    of_k = ranges(k)
    reach_q, reach_k = ranges(q).reach(), of_k.reach(of_k.mean)
    if special_k is not None:
        reach_k = torch.maximum(reach_k, ranges(special_k).reach(of_k.mean))
    scale_q, scale_k = (x.clamp(min=LEAST_REACH) / E4M3_MAX for x in (reach_q, reach_k))
    low_k = None if special_k is None else rounded(special_k, of_k.mean, scale_k)
    scales = (scale_q * scale_k).flatten(1)
    return rounded(q, torch.zeros_like(of_k.mean), scale_q), rounded(k, of_k.mean, scale_k), low_k, scales


def ranges(x: Tensor) -> Ranges:
    """Of [B, H, N, D]; sums in a fixed order, the same bits every time."""
    batch, heads, tokens, dim = x.shape
    block = _ELEMENTS // dim
    parts = x.new_empty(3, batch, heads, triton.cdiv(tokens, block), dim, dtype=torch.float32)
    _ranges_kernel[(parts.shape[3], batch * heads)](x, *parts, tokens, DIM=dim, BLOCK=block, num_warps=8)
    total, highest, lowest = parts
    return Ranges(
        total.sum(2, keepdim=True) / tokens, highest.amax(2, keepdim=True), lowest.amin(2, keepdim=True)
    )


def rounded(x: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """(x - centre) / scale in e4m3, to nearest even: of [B, H, N, D], [B, H, 1, D] and [B, H, 1, 1]."""
    batch, heads, tokens, dim = x.shape
    low, block = torch.empty_like(x, dtype=torch.float8_e4m3fn), _ELEMENTS // dim
    grid = (triton.cdiv(tokens, block), batch * heads)
    _round_kernel[grid](x, centre, scale, low, tokens, DIM=dim, BLOCK=block, num_warps=8)
    return low


@triton.jit
def _ranges_kernel(
    x_ptr, total_ptr, highest_ptr, lowest_ptr, tokens, DIM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Sum, maximum and minimum of each channel over one block of tokens."""
    head, channels = tl.program_id(1).to(tl.int64), tl.arange(0, DIM)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    exists = token < tokens
    x = tl.load(x_ptr + (head * tokens + token) * DIM + channels, mask=exists, other=0.0).to(tl.float32)
    part = (head * tl.num_programs(0) + tl.program_id(0)) * DIM + channels
    tl.store(total_ptr + part, tl.sum(x, 0))
    tl.store(highest_ptr + part, tl.max(tl.where(exists, x, float("-inf")), 0))
    tl.store(lowest_ptr + part, tl.min(tl.where(exists, x, float("inf")), 0))


@triton.jit
def _round_kernel(
    x_ptr, centre_ptr, scale_ptr, low_ptr, tokens, DIM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One block of tokens of one head."""
    head, channels = tl.program_id(1).to(tl.int64), tl.arange(0, DIM)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    exists, elements = token < tokens, (head * tokens + token) * DIM + channels
    x = tl.load(x_ptr + elements, mask=exists, other=0.0).to(tl.float32)
    x = (x - tl.load(centre_ptr + head * DIM + channels)[None, :]) / tl.load(scale_ptr + head)
    x = tl.minimum(tl.maximum(x, -_MAX), _MAX)  # the division may round up
    tl.store(low_ptr + elements, _nearest(x).to(low_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _nearest(x):
    """x rounded to e4m3, in float32: the conversion of Triton's interpreter loses the carry of 31.7 to 32."""
    bits = x.to(tl.int32, bitcast=True)
    normal = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000  # three bits of the fraction are left
    small = (x + 24576.0) - 24576.0  # 1.5 * 2^14, whose neighbours are 2^-9 away like those of x
    return tl.where(tl.abs(x) < 0.015625, small, normal.to(tl.float32, bitcast=True))
