"""Gradients of block-sparse attention in Triton: of the queries row by row, of the keys block by block.

With p = 2^(score * scale - lse) recomputed, dv = pᵀ do, ds = p (do vᵀ - delta), dq = ds k / √D and
dk = dsᵀ q / √D, where delta is the sum of o do over a token's dimensions. Every sum has one writer and a
fixed order: no atomics, the same bits every time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .transpose import RowLists, dense_lists, transposed_lists
from .triton_blocks import PRECISION, block_scores, heads_by_budget, load_block
from .tuning import Tile

_LN_2 = tl.constexpr(math.log(2))  # the scale of the scores is in log2 units


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q_block_size: int,
    kv_block_size: int,
    query_tile: Tile,
    key_tile: Tile,
) -> list[Tensor]:
    """Launch the kernels; all tensors contiguous, lists in int32.

    Args:
        grad: [B, H, N, D] gradient of `out`.
        q: As `triton_forward.forward` got it, like the arguments up to `special_v` and the block sizes.
        k: [B, H, N, D].
        v: [B, H, N, D].
        kv_num_blocks: [B, H, Mq].
        kv_indices: [B, H, Mq, W].
        special_k: [B, H, Ns, D] or None.
        special_v: [B, H, Ns, D] or None.
        out: Its output.
        lse: Its log-sum-exp.
        q_block_size: Queries per block.
        kv_block_size: Keys per block.
        query_tile: Launch options of the kernel for dq.
        key_tile: Launch options of the kernel for dk and dv.

    Returns:
        Gradients of q, k, v and, if given, special_k and special_v; zero for a key that no row lists.
    """
    batch, heads, tokens, dim = q.shape
    order, part = heads_by_budget(kv_num_blocks), q_block_size // query_tile.parts
    num_special = 0 if special_k is None else special_k.shape[2]
    special = (k, v) if special_k is None else (special_k, special_v)  # never read if there are none
    grad_q, delta = torch.empty_like(q), torch.empty_like(lse)
    _queries_kernel[(triton.cdiv(tokens, part), batch * heads)](
        *(q, k, v, *special, out, grad, lse, delta, grad_q, order, kv_num_blocks, kv_indices),
        *(kv_indices.shape[3], tokens, num_special, _scale(dim)),
        DIM=dim,
        BLOCK_M=part,
        BLOCK_N=kv_block_size,
        PARTS=query_tile.parts,
        **query_tile.launch_options(),
    )
    shared, blocks = (grad, lse, delta, order), (q_block_size, kv_block_size)
    lists = transposed_lists(kv_num_blocks, kv_indices, triton.cdiv(tokens, kv_block_size))
    grads = [grad_q, *_key_gradients(q, k, v, *shared, lists, *blocks, key_tile)]
    if special_k is not None and special_v is not None:
        special_blocks = triton.cdiv(num_special, kv_block_size)
        lists = dense_lists(batch * heads, kv_num_blocks.shape[2], special_blocks, q.device)
        grads += _key_gradients(q, special_k, special_v, *shared, lists, *blocks, key_tile)
    return grads


def _key_gradients(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    order: Tensor,
    lists: RowLists,
    q_block_size: int,
    kv_block_size: int,
    tile: Tile,
) -> list[Tensor]:
    """Gradients of one set of keys and values; partial sums over chunks of rows are kept in float32."""
    batch, heads, num_keys, dim = keys.shape
    dtype = q.dtype if lists.chunks == 1 else torch.float32
    shape = (batch, heads, lists.chunks, num_keys, dim)
    grads = [q.new_empty(shape, dtype=dtype) for _ in range(2)]
    _keys_kernel[(lists.counts.shape[1], batch * heads)](
        *(q, keys, values, grad, lse, delta, *grads, order),
        *(lists.begins, lists.counts, lists.rows, lists.rows.stride(0)),
        *(q.shape[2], num_keys, triton.cdiv(num_keys, kv_block_size), _scale(dim)),
        DIM=dim,
        BLOCK_M=q_block_size,
        BLOCK_N=kv_block_size,
        STEP=min(q_block_size, tile.step),
        **tile.launch_options(),
    )
    return [x.squeeze(2) if lists.chunks == 1 else x.sum(2).to(q.dtype) for x in grads]


def _scale(dim: int) -> float:
    """Of scores in log2 units."""
    return math.log2(math.e) / math.sqrt(dim)


@triton.jit
def _queries_step(
    q, grad, lse, delta, k_ptr, v_ptr, head, start, tokens, grad_q, scale,
    DIM: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add ds k of one key block to grad_q."""
    k = load_block(k_ptr, head, start, tokens, DIM, BLOCK, False, WHOLE)
    p = tl.exp2(block_scores(q, k, start, tokens, BLOCK, WHOLE) * scale - lse[:, None])
    v = load_block(v_ptr, head, start, tokens, DIM, BLOCK, False, WHOLE)
    ds = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, grad_q, input_precision=PRECISION)


@triton.jit
def _queries_kernel(
    q_ptr, k_ptr, v_ptr, special_k_ptr, special_v_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, grad_q_ptr,
    head_order, kv_num_blocks, kv_indices, width, tokens, num_special, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """delta and dq of one row of queries, or part of it, over the keys of the forward pass."""
    start = tl.program_id(0) * BLOCK_M
    head = tl.load(head_order + tl.program_id(1)).to(tl.int32)
    first = head.to(tl.int64) * tokens + start
    offsets = tl.arange(0, BLOCK_M)
    exists = start + offsets < tokens
    q = load_block(q_ptr, head, start, tokens, DIM, BLOCK_M, False, False)
    grad = load_block(grad_ptr, head, start, tokens, DIM, BLOCK_M, False, False)
    out = load_block(out_ptr, head, start, tokens, DIM, BLOCK_M, False, False)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta_ptr + first + offsets, delta, mask=exists)
    lse = tl.load(lse_ptr + first + offsets, mask=exists, other=0.0)

    list_row = head.to(tl.int64) * tl.cdiv(tokens, BLOCK_M * PARTS) + tl.program_id(0) // PARTS
    blocks = kv_indices + list_row * width
    count = tl.load(kv_num_blocks + list_row)
    has_partial = (tl.load(blocks + count - 1) + 1) * BLOCK_N > tokens
    grad_q = tl.zeros([BLOCK_M, DIM], tl.float32)
    for k_start in tl.range(0, num_special, BLOCK_N, num_stages=1):
        grad_q = _queries_step(
            q, grad, lse, delta, special_k_ptr, special_v_ptr, head, k_start, num_special, grad_q, scale,
            DIM, BLOCK_N, False,
        )  # fmt: skip
    if has_partial:
        grad_q = _queries_step(
            q, grad, lse, delta, k_ptr, v_ptr, head, tokens // BLOCK_N * BLOCK_N, tokens, grad_q, scale,
            DIM, BLOCK_N, False,
        )  # fmt: skip
    for i in tl.range(0, count - has_partial.to(tl.int32)):
        grad_q = _queries_step(
            q, grad, lse, delta, k_ptr, v_ptr, head, tl.load(blocks + i) * BLOCK_N, tokens, grad_q, scale,
            DIM, BLOCK_N, True,
        )  # fmt: skip
    elements = offsets[:, None] * DIM + tl.arange(0, DIM)
    grad_q *= scale * 0.6931471805599453  # ln 2: the scale of the scores is in log2 units
    tl.store(
        grad_q_ptr + first * DIM + elements, grad_q.to(grad_q_ptr.dtype.element_ty), mask=exists[:, None]
    )


@triton.jit
def _keys_step(
    k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, head, start, tokens, grad_k, grad_v, scale,
    DIM: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Add dsᵀ q and pᵀ do of some queries; those past the end add nothing, since their do and delta are 0."""
    q = load_block(q_ptr, head, start, tokens, DIM, BLOCK, False, WHOLE)
    offsets = head.to(tl.int64) * tokens + start + tl.arange(0, BLOCK)
    if WHOLE:
        lse, delta = tl.load(lse_ptr + offsets), tl.load(delta_ptr + offsets)
    else:
        exists = start + tl.arange(0, BLOCK) < tokens
        lse = tl.load(lse_ptr + offsets, mask=exists, other=0.0)
        delta = tl.load(delta_ptr + offsets, mask=exists, other=0.0)
    p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale - lse[None, :])
    grad = load_block(grad_ptr, head, start, tokens, DIM, BLOCK, False, WHOLE)
    grad_v = tl.dot(p.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
    ds = p * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, grad_k, input_precision=PRECISION), grad_v


@triton.jit
def _keys_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    head_order, begins, counts, rows_ptr, rows_stride, tokens, num_keys, kv_blocks, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys over one list of rows; [B * H, chunks, num_keys, D] in all."""
    start = tl.program_id(0) % kv_blocks * BLOCK_N
    head = tl.load(head_order + tl.program_id(1)).to(tl.int32)
    k = load_block(k_ptr, head, start, num_keys, DIM, BLOCK_N, False, False)
    v = load_block(v_ptr, head, start, num_keys, DIM, BLOCK_N, False, False)
    grad_k = tl.zeros([BLOCK_N, DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_N, DIM], tl.float32)

    list_index = head.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    rows = rows_ptr + head.to(tl.int64) * rows_stride + tl.load(begins + list_index)
    count = tl.load(counts + list_index)
    last = tl.load(rows + count - 1, mask=count > 0, other=-1)  # lists ascend: a partial row can only be last
    has_partial = (last + 1) * BLOCK_M > tokens
    if has_partial:
        for q_start in tl.range(last * BLOCK_M, tokens, STEP, num_stages=1):
            grad_k, grad_v = _keys_step(
                k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, head, q_start, tokens, grad_k, grad_v, scale,
                DIM, STEP, False,
            )  # fmt: skip
    for i in tl.range(0, (count - has_partial.to(tl.int32)) * (BLOCK_M // STEP)):
        q_start = tl.load(rows + i // (BLOCK_M // STEP)) * BLOCK_M + i % (BLOCK_M // STEP) * STEP
        grad_k, grad_v = _keys_step(
            k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, head, q_start, tokens, grad_k, grad_v, scale,
            DIM, STEP, True,
        )  # fmt: skip

    chunk = head.to(tl.int64) * (tl.num_programs(0) // kv_blocks) + tl.program_id(0) // kv_blocks
    offsets = tl.arange(0, BLOCK_N)[:, None]
    elements = (chunk * num_keys + start) * DIM + (offsets * DIM + tl.arange(0, DIM))
    exists = start + offsets < num_keys
    grad_k *= scale * _LN_2
    tl.store(grad_k_ptr + elements, grad_k.to(grad_k_ptr.dtype.element_ty), mask=exists)
    tl.store(grad_v_ptr + elements, grad_v.to(grad_v_ptr.dtype.element_ty), mask=exists)
