"""The kernels behind `heads`: a program takes some tokens of one head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 1 << 12  # per program


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Layer norm over D of [B, H, N, D] of any strides, contiguous and of that dtype; see `norm_heads`."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    grid, shape = _launch(x)
    _norm_kernel[grid](x, weight, bias, out, *x.stride(), x.shape[1], x.shape[2], eps, **shape)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE by cosines and sines [P, D] of [B, H, N, D] of any strides; see `rotate_heads`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid, shape = _launch(x)
    _rotate_kernel[grid](x, cos, sin, out, *x.stride(), x.shape[1], x.shape[2], len(cos), **shape)
    return out


def _launch(x: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and options: heads of the same tokens follow one another, as they lie side by side in memory."""
    batch, heads, tokens, dim = x.shape
    block = _ELEMENTS // dim
    return (batch * heads, triton.cdiv(tokens, block)), {"DIM": dim, "BLOCK": block, "num_warps": 4}


@triton.jit
def _places(stride_b, stride_h, stride_n, heads, tokens, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """This program's tokens [BLOCK, 1], and where each begins in the input and in the contiguous output."""
    head = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]
    source = head // heads * stride_b + head % heads * stride_h + token * stride_n
    return token, source, (head * tokens + token) * DIM


@triton.jit
def _norm_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, stride_b, stride_h, stride_n, stride_d, heads, tokens, eps,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, source, target = _places(stride_b, stride_h, stride_n, heads, tokens, DIM, BLOCK)
    exists, column = token < tokens, tl.arange(0, DIM)[None, :]
    x = tl.load(x_ptr + source + column * stride_d, mask=exists, other=0.0).to(tl.float32)
    x -= tl.sum(x, 1)[:, None] / DIM
    x *= tl.rsqrt(tl.sum(x * x, 1)[:, None] / DIM + eps)
    x = x * tl.load(weight_ptr + column).to(tl.float32) + tl.load(bias_ptr + column).to(tl.float32)
    tl.store(out_ptr + target + column, x.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr, stride_b, stride_h, stride_n, stride_d, heads, tokens, period,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, source, target = _places(stride_b, stride_h, stride_n, heads, tokens, DIM, BLOCK)
    exists, pair = token < tokens, tl.arange(0, DIM // 2)[None, :]
    column = pair + pair // (DIM // 4) * (DIM // 4)  # of a pair's first entry
    first = tl.load(x_ptr + source + column * stride_d, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + source + (column + DIM // 4) * stride_d, mask=exists, other=0.0).to(tl.float32)
    angle = token % period * DIM + column
    cos, sin = tl.load(cos_ptr + angle).to(tl.float32), tl.load(sin_ptr + angle).to(tl.float32)
    out = out_ptr + target + column
    tl.store(out, (first * cos - second * sin).to(out_ptr.dtype.element_ty), mask=exists)
    tl.store(out + DIM // 4, (second * cos + first * sin).to(out_ptr.dtype.element_ty), mask=exists)
