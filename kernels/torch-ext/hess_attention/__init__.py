"""Block-sparse attention over a list of key blocks per row of queries, with keys that all attend to.

`block_sparse_attention` checks what it is given and hands it to one of `BACKENDS`. `reference.py` says, in as
few lines as the mathematics has, what all of them compute. `heads.py` prepares queries and keys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .flex import flex_attention
from .heads import norm_heads, rotate_heads
from .ops import fp8_attention, triton_attention, unsupported
from .reference import block_mask, dense_mask_attention, gathered_attention
from .tuning import HAS_TRITON, compiles_for, dense_below_tokens

__all__ = [
    "BACKENDS",
    "block_mask",
    "block_sparse_attention",
    "dense_below_tokens",
    "dense_mask_attention",
    "norm_heads",
    "resolve_backend",
    "rotate_heads",
]


class Backend(NamedTuple):
    """One implementation of `block_sparse_attention`, called with everything but `backend`."""

    attend: Callable[..., Tensor]
    runs_on: Callable[[torch.device], bool]
    automatic: Callable[..., bool] = lambda *call: True  # may "auto" take it, for the arguments of a call


# Read once, as Triton itself does.
_TRITON_DEVICES = {"cuda", "cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else {"cuda"}


def _on_a_gpu_that_triton_knows(device: torch.device, *call: Any) -> bool:
    return compiles_for(device) and unsupported(device, *call) is None


#: Fastest first: "auto" takes the first that runs on the tensors' device and is automatic for their type and
#: shape. FlexAttention never is: it is slower than Triton and compiles anew for many lengths.
BACKENDS: dict[str, Backend] = {
    "triton": Backend(
        triton_attention,
        lambda device: HAS_TRITON and device.type in _TRITON_DEVICES,
        _on_a_gpu_that_triton_knows,
    ),
    "flex": Backend(flex_attention, lambda device: device.type == "cuda", lambda *call: False),
    "reference": Backend(gathered_attention, lambda device: True),
}


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, dim: int, q_block_size: int, kv_block_size: int
) -> str:
    """The name of the implementation to use; raises ValueError if that one cannot run on the device.

    "auto" is "triton" on NVIDIA GPUs since sm_80, for bfloat16, float16 and float32, head dimensions of 16,
    32, 64 and 128, and blocks of 16, 32, 64 and 128; elsewhere "reference", without a word.

    Args:
        backend: One of `BACKENDS`, or "auto".
        device: Where q, k and v are.
        dtype: Of q, k and v.
        dim: Head dimension.
        q_block_size: Queries per block.
        kv_block_size: Keys per block.
    """
    available = [name for name, candidate in BACKENDS.items() if candidate.runs_on(device)]
    if backend == "auto":
        call = (device, dtype, dim, q_block_size, kv_block_size)
        return next(name for name in available if BACKENDS[name].automatic(*call))
    if backend not in available:
        raise ValueError(
            f"backend {backend!r} is not available on {device.type}; "
            f"available there: auto, {', '.join(available)}."
        )
    return backend


def block_sparse_attention(
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
    backend: str = "auto",
    qk_dtype: str = "same",
    lse: Tensor | None = None,
) -> Tensor:
    """Attention of every block of queries to the key blocks listed for it, and to all special keys.

    `softmax(q [special_k, k]ᵀ / √D + mask) [special_v, v]`, where the mask is 0 for special keys and listed
    blocks and -inf elsewhere. Blocks are cut from token 0; the last ones may hold fewer tokens. Not causal.
    Differentiable in q, k, v, special_k and special_v; the lists are constants.

    Args:
        q: [B, H, N, D] queries, any floating dtype.
        k: [B, H, N, D] keys.
        v: [B, H, N, D] values.
        kv_num_blocks: [B, H, Mq] int32 or int64, Mq = ⌈N / q_block_size⌉: the number of blocks listed for
            each row, at least 1.
        kv_indices: [B, H, Mq, W] int32 or int64, W <= Mk = ⌈N / kv_block_size⌉: in each row the first
            `kv_num_blocks` entries are strictly ascending block indices below Mk; the others are not read.
        special_k: [B, H, Ns, D] keys attended to by every query, outside the blocks; None for none.
        special_v: [B, H, Ns, D] their values.
        q_block_size: Queries per block.
        kv_block_size: Keys per block.
        backend: One of `BACKENDS`, or "auto": see `resolve_backend`.
        qk_dtype: "same", or "fp8": queries and keys are rounded to e4m3 before their product, see
            `reference.e4m3_operands`, and values are not. Faster and coarser; only by "triton", on GPUs since
            sm_90, for bfloat16 and float16, head dimensions of 32, 64 and 128, without gradients.
        lse: [B, H, N] float32 or float64, to be filled with the log-sum-exp of each query's scaled scores,
            natural and without gradient: by it outputs over disjoint keys can be merged. Not by "flex" and
            not with "fp8".

    Returns:
        [B, H, N, D], dtype of `q`.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together or the backend, `qk_dtype` or `lse` is
            not available; the reference also refuses lists that break the rules above.
    """
    _check_tokens(q, k, v, special_k, special_v)
    _check_lists(q, kv_num_blocks, kv_indices, q_block_size, kv_block_size)
    _check_lse(q, lse)
    name = resolve_backend(backend, q.device, q.dtype, q.shape[3], q_block_size, kv_block_size)
    if qk_dtype not in ("same", "fp8"):
        raise ValueError(f"qk_dtype must be one of same, fp8; got {qk_dtype!r}.")
    if qk_dtype == "fp8" and name != "triton":
        raise ValueError(
            f"qk_dtype='fp8' needs backend 'triton', got {name!r} (backend={backend!r} on {q.device.type}). "
            "qk_dtype='same' has no such limit."
        )
    attend = fp8_attention if qk_dtype == "fp8" else BACKENDS[name].attend
    return attend(
        q,
        k,
        v,
        kv_num_blocks,
        kv_indices,
        special_k=special_k,
        special_v=special_v,
        q_block_size=q_block_size,
        kv_block_size=kv_block_size,
        lse=lse,
    )


def _check_lse(q: Tensor, lse: Tensor | None) -> None:
    if lse is None:
        return
    fits = lse.shape == q.shape[:3] and lse.dtype in (torch.float32, torch.float64) and lse.device == q.device
    if not fits or lse.requires_grad:
        raise ValueError(
            f"lse is {lse.dtype} {list(lse.shape)} on {lse.device}; it is filled, so it must be float32 or "
            f"float64 {list(q.shape[:3])} on {q.device}, without gradient."
        )


def _check_tokens(
    q: Tensor, k: Tensor, v: Tensor, special_k: Tensor | None, special_v: Tensor | None
) -> None:
    if q.ndim != 4 or 0 in q.shape or not q.is_floating_point():
        raise ValueError(
            "q must be a floating tensor [B, H, N, D] with no empty dimension, "
            f"got {q.dtype} {list(q.shape)}."
        )
    if (special_k is None) != (special_v is None):
        raise ValueError("special_k and special_v must be given together, got only one of them.")
    named: list[tuple[str, Tensor, tuple[int, ...]]] = [("k", k, q.shape), ("v", v, q.shape)]
    if special_k is not None and special_v is not None:
        special_shape = (*q.shape[:2], special_k.shape[-2] if special_k.ndim > 1 else 0, q.shape[3])
        named += [("special_k", special_k, special_shape), ("special_v", special_v, special_shape)]
    for name, tensor, shape in named:
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, q has {list(q.shape)}: {name} must be {list(shape)}."
            )
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, q is {q.dtype} on {q.device}: they must agree."
            )


def _check_lists(
    q: Tensor, kv_num_blocks: Tensor, kv_indices: Tensor, q_block_size: int, kv_block_size: int
) -> None:
    if q_block_size < 1 or kv_block_size < 1:
        raise ValueError(f"block sizes must be at least 1, got {q_block_size} and {kv_block_size}.")
    tokens = q.shape[2]
    q_blocks, kv_blocks = -(-tokens // q_block_size), -(-tokens // kv_block_size)
    rows = (*q.shape[:2], q_blocks)
    if kv_num_blocks.shape != rows:
        raise ValueError(
            f"kv_num_blocks has shape {list(kv_num_blocks.shape)}; "
            f"{tokens} queries in blocks of {q_block_size} need {list(rows)}."
        )
    if kv_indices.shape[:-1] != rows or not 1 <= kv_indices.shape[-1] <= kv_blocks:
        raise ValueError(
            f"kv_indices has shape {list(kv_indices.shape)}; {tokens} tokens in blocks of {q_block_size} "
            f"queries and {kv_block_size} keys need {list(rows)} + [1 to {kv_blocks}]."
        )
    for name, tensor in (("kv_num_blocks", kv_num_blocks), ("kv_indices", kv_indices)):
        if tensor.dtype not in (torch.int32, torch.int64) or tensor.device != q.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}; "
                f"it must be int32 or int64 on {q.device}, like q."
            )
