"""What the forward and the backward kernels share: blocks of tokens, their scores, and the order of heads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

# Of products of float32: three of TF32, nearly exact. Outside the matrix units they would spill registers.
PRECISION = tl.constexpr("tf32x3")


def heads_by_budget(num_blocks: Tensor) -> Tensor:
    """[B * H] int64: heads of all items, most blocks first, since the longest must not start last."""
    return num_blocks.flatten(0, 1).sum(1).argsort(descending=True)


def block_source(x: Tensor, block: int, tma: bool) -> Tensor | TensorDescriptor:
    """What the kernel loads blocks of tokens from: the tensor, or a descriptor of it for the copy engine."""
    if not tma:
        return x
    # Heads are a dimension of their own: past the last token come zeros, not the tokens of the next head.
    return TensorDescriptor.from_tensor(x.flatten(0, 1), [1, block, x.shape[3]])


@triton.jit
def load_block(
    source, head, start, tokens,
    DIM: tl.constexpr, BLOCK: tl.constexpr, TMA: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Tokens [start, start + BLOCK) of one head, [BLOCK, DIM]; if not WHOLE, those past the end are zero."""
    if TMA:
        block = source.load([head, start, 0]).reshape(BLOCK, DIM)
    else:
        offset = tl.arange(0, BLOCK)[:, None]
        pointers = source + (head.to(tl.int64) * tokens + start) * DIM + (offset * DIM + tl.arange(0, DIM))
        block = tl.load(pointers) if WHOLE else tl.load(pointers, mask=start + offset < tokens, other=0.0)
    return block


@triton.jit
def block_scores(q, k, start, tokens, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """q kᵀ for the keys [start, start + BLOCK); if not WHOLE, -inf for those past the end."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if not WHOLE:
        scores = tl.where((start + tl.arange(0, BLOCK) < tokens)[None, :], scores, float("-inf"))
    return scores
