"""Norm and rotation of queries and keys, before they meet: one pass over memory each on a GPU.

On an H100 PyTorch's layer norm took 4.2 ms for the queries of 200 photos, whose rows are as short as a head,
and RoPE in PyTorch 2.3 ms; the kernels take 0.3 ms each. Both results are contiguous [B, H, N, D], as
attention wants them, whatever the strides of what a projection gave.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._namespace import add_op_namespace_prefix
from .ops import DTYPES, HEAD_DIMS
from .tuning import compiles_for

# With fewer, a launch from Python takes longer than passes over memory; expected, not measured.
MIN_ELEMENTS = 1 << 20


def norm_heads(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of every token of every head.

    Args:
        x: [B, H, N, D], any strides.
        weight: [D].
        bias: [D].
        eps: added to the variance.

    Returns:
        [B, H, N, D] in the dtype of PyTorch's layer norm: that of `x`, on a GPU under autocast float32.
    """
    # What PyTorch refuses is left to it: the kernel would read past the end of a short weight.
    if x.shape[-1:] == weight.shape == bias.shape and _in_one_pass(x, weight, bias):
        if torch.is_autocast_enabled(x.device.type):
            return _norm_op(x, weight, bias, eps, torch.float32)
        if x.dtype == weight.dtype == bias.dtype:
            return _norm_op(x, weight, bias, eps, x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def rotate_heads(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE: turn entry k of each half of a head with entry k + D/4 of that half.

    Args:
        x: [B, H, N, D], any strides.
        angles: [P, D] radians in float32 or float64, equal in both entries of a pair; those of token n are
            in row n modulo P, and N is a multiple of P.

    Returns:
        [B, H, N, D], dtype of `x`.

    Raises:
        ValueError: the angles are not those of whole views of such heads.
    """
    if angles.shape[1:] != x.shape[3:] or x.shape[2] % angles.shape[0]:
        raise ValueError(
            f"angles have shape {list(angles.shape)}, x has {list(x.shape)}: angles must be "
            f"[P, {x.shape[3]}], where P, the tokens of one view, divides {x.shape[2]}."
        )
    if _in_one_pass(x, angles):
        return _rotate_op(x, angles.cos(), angles.sin())
    views = x.unflatten(2, (-1, angles.shape[0]))
    first, second = views.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack((-second, first), dim=-2).flatten(-3)
    return (views * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)).flatten(2, 3)


def _in_one_pass(x: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take a call, and pay; they record no gradients."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *others))
    fits = x.ndim == 4 and x.dtype in DTYPES and x.shape[-1] in HEAD_DIMS and x.numel() >= MIN_ELEMENTS
    return fits and not recorded and compiles_for(x.device)


@torch.library.custom_op(add_op_namespace_prefix("norm_heads"), mutates_args=())
def _norm_op(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    from .triton_heads import norm

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return norm(x, weight.contiguous(), bias.contiguous(), eps, dtype)


@_norm_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op(add_op_namespace_prefix("rotate_heads"), mutates_args=())
def _rotate_op(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from .triton_heads import rotate

    with torch.cuda.device_of(x):
        return rotate(x, cos.contiguous(), sin.contiguous())


@_rotate_op.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)
