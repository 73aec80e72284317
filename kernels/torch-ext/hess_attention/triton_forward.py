"""Block-sparse attention forward in Triton: one program per row of queries, no mask in the hot loop.

A row attends to three kinds of keys: the special ones, the partial last patch block if it is listed, and the
whole patch blocks of its list. The last are nearly all; only the others are masked. `reference.py` says what
is computed, `tuning.py` which variant runs where.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_blocks import PRECISION, block_scores, block_source, heads_by_budget, load_block

if TYPE_CHECKING:
    from .tuning import Tile


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    special_k: Tensor | None,
    special_v: Tensor | None,
    q_block_size: int,
    kv_block_size: int,
    tile: Tile,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel. All tensors contiguous, shapes as in `block_sparse_attention`, lists in int32.

    Args:
        q: [B, H, N, D], D a power of two.
        k: [B, H, N, D].
        v: [B, H, N, D].
        kv_num_blocks: [B, H, Mq].
        kv_indices: [B, H, Mq, W].
        special_k: [B, H, Ns, D] or None.
        special_v: [B, H, Ns, D] or None.
        q_block_size: Queries per program, a power of two.
        kv_block_size: Keys per step, a power of two.
        tile: Variant and launch options.
        scales: [B, H] float32, by which to multiply products of q and k, then in fp8; None: they are not.

    Returns:
        The output [B, H, N, D] in the dtype of v; and [B, H, N] float32, log2 of the sum of e^score.
    """
    batch, heads, tokens, dim = q.shape
    out, lse = torch.empty_like(v), v.new_empty(q.shape[:3], dtype=torch.float32)
    num_special = 0 if special_k is None else special_k.shape[2]
    if special_k is None or special_v is None:
        special_k, special_v = k, v  # never read
    sources = [block_source(x, kv_block_size, tile.tma) for x in (k, v, special_k, special_v)]
    lists = (heads_by_budget(kv_num_blocks), kv_num_blocks, kv_indices, kv_indices.shape[3])
    scale, block_m = math.log2(math.e) / math.sqrt(dim), q_block_size // tile.parts
    # A row that outgrew a frozen maximum is computed again; for the others the second program ends at once.
    for redo in (False, True) if tile.frozen else (False,):
        _forward_kernel[(triton.cdiv(tokens, block_m), batch * heads)](
            *(q, *sources, out, lse, *lists, tokens, num_special, scale, lse if scales is None else scales),
            DIM=dim,
            BLOCK_M=block_m,
            BLOCK_N=kv_block_size,
            PARTS=tile.parts,
            TMA=tile.tma,
            FROZEN=tile.frozen and not redo,
            REDO=redo,
            SCALED=scales is not None,
            **tile.launch_options(),
        )
    return out, lse


@triton.jit
def _attend(
    q, k_source, v_source, head, start, tokens, acc, total, peak, scale,
    DIM: tl.constexpr, BLOCK: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """One block: acc is the sum of p v and total that of p, where p = 2^(score * scale - peak).

    The peak, which cancels, keeps p finite: the maximum so far, or if FROZEN that of the row's first block.
    """
    k = load_block(k_source, head, start, tokens, DIM, BLOCK, TMA, WHOLE)
    scores = block_scores(q, k, start, tokens, BLOCK, WHOLE)
    if FROZEN:
        p = tl.exp2(scores * scale - peak[:, None])
    else:
        above = tl.maximum(peak, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - above[:, None])
        shrink = tl.exp2(peak - above)
        total *= shrink
        acc *= shrink[:, None]
        peak = above
    total += tl.sum(p, 1)
    # Load the values only now: together with the keys, the compiler waits for both and runs out of registers.
    v = load_block(v_source, head, start, tokens, DIM, BLOCK, TMA, WHOLE)
    return tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION), total, peak


@triton.jit
def _attend_ends(
    q, k_source, v_source, special_k_source, special_v_source, head, tokens, num_special, has_partial,
    peak, scale, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
    FROZEN: tl.constexpr,
):  # fmt: skip
    """All special keys, and the last patch block if it is partial and listed: the start of every row."""
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # They are few: no pipeline, which leaves registers to the hot loop, and one masked copy of the code.
    for start in tl.range(0, num_special, BLOCK_N, num_stages=1):
        acc, total, peak = _attend(
            q, special_k_source, special_v_source, head, start, num_special, acc, total, peak, scale,
            DIM, BLOCK_N, TMA, False, FROZEN,
        )  # fmt: skip
    if has_partial:
        acc, total, peak = _attend(
            q, k_source, v_source, head, tokens // BLOCK_N * BLOCK_N, tokens, acc, total, peak, scale,
            DIM, BLOCK_N, TMA, False, FROZEN,
        )  # fmt: skip
    return acc, total, peak


@triton.jit
def _attend_listed(
    q, k_source, v_source, head, tokens, blocks, count, acc, total, peak, scale,
    DIM: tl.constexpr, BLOCK: tl.constexpr, TMA: tl.constexpr, FROZEN: tl.constexpr,
):  # fmt: skip
    """The hot loop: the first `count` blocks of the list, all whole."""
    for i in tl.range(0, count):
        acc, total, peak = _attend(
            q, k_source, v_source, head, tl.load(blocks + i) * BLOCK, tokens, acc, total, peak, scale,
            DIM, BLOCK, TMA, True, FROZEN,
        )  # fmt: skip
    return acc, total, peak


@triton.jit
def _forward_kernel(
    q_ptr, k_source, v_source, special_k_source, special_v_source, out_ptr, lse_ptr,
    head_order, kv_num_blocks, kv_indices, width, tokens, num_special, scale, scales,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr,
    FROZEN: tl.constexpr, REDO: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """One row, or part of it; programs of one head follow each other, so its keys stay in the L2 cache."""
    start = tl.program_id(0) * BLOCK_M
    head = tl.load(head_order + tl.program_id(1)).to(tl.int32)
    first = head.to(tl.int64) * tokens + start
    if REDO and tl.load(lse_ptr + first) != float("inf"):
        return
    list_row = head.to(tl.int64) * tl.cdiv(tokens, BLOCK_M * PARTS) + tl.program_id(0) // PARTS
    blocks = kv_indices + list_row * width
    count = tl.load(kv_num_blocks + list_row)
    has_partial = (tl.load(blocks + count - 1) + 1) * BLOCK_N > tokens  # lists ascend: it can only be last

    if SCALED:
        scale *= tl.load(scales + head)
    q = load_block(q_ptr, head, start, tokens, DIM, BLOCK_M, False, False)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if FROZEN:
        k_start = tl.load(blocks) * BLOCK_N
        k = load_block(k_source, head, k_start, tokens, DIM, BLOCK_N, TMA, False)
        peak = tl.max(block_scores(q, k, k_start, tokens, BLOCK_N, False), 1) * scale
    acc, total, peak = _attend_ends(
        q, k_source, v_source, special_k_source, special_v_source, head, tokens, num_special, has_partial,
        peak, scale, DIM, BLOCK_M, BLOCK_N, TMA, FROZEN,
    )  # fmt: skip
    acc, total, peak = _attend_listed(
        q, k_source, v_source, head, tokens, blocks, count - has_partial.to(tl.int32), acc, total, peak,
        scale, DIM, BLOCK_N, TMA, FROZEN,
    )  # fmt: skip

    out = acc / total[:, None]
    lse = peak + tl.log2(total)
    if FROZEN:
        # Far below overflow of p in float16, or of acc otherwise. The mark is for the second launch.
        limit = 2.0**15 if out_ptr.dtype.element_ty == tl.float16 else 2.0**100
        lse = tl.where(tl.max(total, 0) > limit, float("inf"), lse)
    offsets = tl.arange(0, BLOCK_M)
    exists = start + offsets < tokens
    elements = offsets[:, None] * DIM + tl.arange(0, DIM)
    tl.store(out_ptr + first * DIM + elements, out.to(out_ptr.dtype.element_ty), mask=exists[:, None])
    tl.store(lse_ptr + first + offsets, lse, mask=exists)
