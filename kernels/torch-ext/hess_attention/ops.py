"""The Triton kernels as operators of PyTorch: with fake kernels for `torch.compile`, and with gradients."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from ._namespace import add_op_namespace_prefix
from .reference import checked_lengths
from .tuning import choose_tile

HEAD_DIMS = (16, 32, 64, 128)
BLOCK_SIZES = (16, 32, 64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FP8_HEAD_DIMS = (32, 64, 128)  # matrix units take 32 channels of 8 bits at a time

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor kv_num_blocks, Tensor kv_indices, "
    "Tensor? special_k, Tensor? special_v, int q_block_size, int kv_block_size"
)


def triton_attention(
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
    """`block_sparse_attention` by the Triton kernels; on a CPU only in Triton's interpreter.

    Matrix products accumulate in float32; those of float32 are made of three of TF32, nearly exact.
    The lists are trusted: only with HESS_ATTENTION_DEBUG=1 in the environment are they checked, which waits
    for the GPU. Otherwise an index out of range reads memory it must not.

    Raises:
        ValueError: if the head dimension, a block size or the dtype is not supported.
    """
    call = _call(q, k, v, kv_num_blocks, kv_indices, special_k, special_v, q_block_size, kv_block_size)
    out, binary_lse = _forward_op(*call)
    if lse is not None:
        lse.copy_(binary_lse * math.log(2))
    return out


def fp8_attention(
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
    """`triton_attention` of what `reference.e4m3_operands` makes of queries and keys.

    Raises:
        ValueError: if something is not supported, which is more than there; see `block_sparse_attention`.
    """
    if lse is not None:  # without the mean key, scores are not those of the queries and keys given
        raise ValueError("qk_dtype='fp8' gives no log-sum-exp; call it without lse, or with qk_dtype='same'.")
    # The interpreter knows all types that GPUs know.
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else (9, 0)
    check_fp8(capability, q, k, v, special_k, special_v)
    call = _call(q, k, v, kv_num_blocks, kv_indices, special_k, special_v, q_block_size, kv_block_size)
    return _fp8_op(*call)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    q_block_size: int,
    kv_block_size: int,
) -> tuple[Any, ...]:
    """The arguments of an operator: everything contiguous, no special keys instead of empty ones."""
    problem = unsupported(q.device, q.dtype, q.shape[3], q_block_size, kv_block_size)
    if problem is not None:
        raise ValueError(
            f"backend 'triton' does not support {problem}. backend='reference' has no such limit."
        )
    special = [None if x is None or x.shape[2] == 0 else x.contiguous() for x in (special_k, special_v)]
    tokens = [x.contiguous() for x in (q, k, v)]
    lists = [x.int().contiguous() for x in (kv_num_blocks, kv_indices)]
    return (*tokens, *lists, *special, q_block_size, kv_block_size)


def unsupported(
    device: torch.device, dtype: torch.dtype, dim: int, q_block_size: int, kv_block_size: int
) -> str | None:
    """What of a call the kernels do not take, and what they do; None if they take it all."""
    # Triton's interpreter takes bfloat16 for integers, without a word.
    exact = DTYPES[1:] if device.type == "cpu" else DTYPES
    for name, value, supported in (
        ("head dimension", dim, HEAD_DIMS),
        ("q_block_size", q_block_size, BLOCK_SIZES),
        ("kv_block_size", kv_block_size, BLOCK_SIZES),
        ("dtype", dtype, exact),
    ):
        if value not in supported:
            return f"{name} {value}; it supports {', '.join(map(str, supported))}"
    return None


def check_fp8(capability: tuple[int, int], q: Tensor, *others: Tensor | None) -> None:
    """ValueError where products of fp8 cannot be had: on this GPU, or of these tensors."""
    needs = {
        "a GPU since sm_90": (capability >= (9, 0), f"sm_{capability[0]}{capability[1]}"),
        "bfloat16 or float16": (q.dtype in DTYPES[:2], q.dtype),
        f"a head dimension of {', '.join(map(str, FP8_HEAD_DIMS))}": (
            q.shape[3] in FP8_HEAD_DIMS,
            q.shape[3],
        ),
        "no gradients": (
            not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, *others))),
            "inputs that require them; torch.inference_mode() records none",
        ),
    }
    for rule, (met, found) in needs.items():
        if not met:
            raise ValueError(f"qk_dtype='fp8' needs {rule}, got {found}. qk_dtype='same' has no such limit.")


@torch.library.custom_op(
    add_op_namespace_prefix("block_sparse_attention"),
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor, Tensor)",
)
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    q_block_size: int,
    kv_block_size: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, D] and its log-sum-exp [B, H, N] (float32, base 2); see `triton_forward.forward`."""
    from .triton_forward import forward

    lists, sizes = (kv_num_blocks, kv_indices), (q_block_size, kv_block_size)
    _check_indices(*lists, -(-q.shape[2] // kv_block_size))
    tile = choose_tile("forward", q.device, q.dtype, q.shape[3], *sizes)
    with torch.cuda.device_of(q):  # Triton launches on the current device
        return forward(q, k, v, *lists, special_k, special_v, *sizes, tile)


@torch.library.custom_op(
    add_op_namespace_prefix("block_sparse_attention_fp8"),
    mutates_args=(),
    schema=f"({_INPUTS}) -> Tensor",
)
def _fp8_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    q_block_size: int,
    kv_block_size: int,
) -> Tensor:
    """Output [B, H, N, D] of products of queries and keys in e4m3."""
    from .triton_forward import forward
    from .triton_fp8 import e4m3_operands

    lists, sizes = (kv_num_blocks, kv_indices), (q_block_size, kv_block_size)
    _check_indices(*lists, -(-q.shape[2] // kv_block_size))
    tile = choose_tile("forward_fp8", v.device, v.dtype, v.shape[3], *sizes)
    with torch.cuda.device_of(q):
        q, k, special_k, scales = e4m3_operands(q, k, special_k)
        return forward(q, k, v, *lists, special_k, special_v, *sizes, tile, scales)[0]


@_fp8_op.register_fake
def _(q: Tensor, *others: object) -> Tensor:
    return torch.empty_like(q)


def _check_indices(kv_num_blocks: Tensor, kv_indices: Tensor, kv_blocks: int) -> None:
    if os.environ.get("HESS_ATTENTION_DEBUG") != "1":
        return
    counts, indices = kv_num_blocks.flatten(), kv_indices.flatten(0, 2).long()
    listed = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
    checked_lengths(counts.sort(descending=True).values, indices.masked_fill(~listed, 0), listed, kv_blocks)


@_forward_op.register_fake
def _(q: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    add_op_namespace_prefix("block_sparse_attention_backward"),
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, Tensor out, Tensor lse) -> Tensor[]",
)
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    q_block_size: int,
    kv_block_size: int,
    out: Tensor,
    lse: Tensor,
) -> list[Tensor]:
    """Gradients of q, k and v, and of special_k and special_v if there are any."""
    from .triton_backward import backward

    call = (q.device, q.dtype, q.shape[3], q_block_size, kv_block_size)
    with torch.cuda.device_of(q):
        return backward(
            *(grad, q, k, v, kv_num_blocks, kv_indices, special_k, special_v, out, lse),
            q_block_size,
            kv_block_size,
            choose_tile("backward_queries", *call),
            choose_tile("backward_keys", *call),
        )


@_backward_op.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    *others: object,
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (q, k, v, special_k, special_v) if x is not None]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.q_block_size, ctx.kv_block_size = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple:
    *inputs, out, lse = ctx.saved_tensors
    grads = _backward_op(grad.contiguous(), *inputs, ctx.q_block_size, ctx.kv_block_size, out, lse)
    special = grads[3:] if len(grads) > 3 else (None, None)
    return (*grads[:3], None, None, *special, None, None)


_forward_op.register_autograd(_differentiate, setup_context=_save)
