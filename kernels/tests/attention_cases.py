"""Random calls of block-sparse attention, shared by the tests of its implementations."""

from __future__ import annotations

import torch
from torch import Tensor


def random_case(
    batch: int,
    heads: int,
    tokens: int,
    dim: int,
    num_special: int,
    q_block: int,
    kv_block: int,
    seed: int = 0,
) -> tuple[list[Tensor], dict]:
    """Positional tensors q, k, v, counts, indices, and the keywords of one call, in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, tokens, dim, generator=generator, dtype=torch.float64)
    rows, width = -(-tokens // q_block), -(-tokens // kv_block)
    counts = torch.randint(1, width + 1, (batch, heads, rows), generator=generator)
    counts.view(-1)[0], counts.view(-1)[-1] = 1, width
    order = torch.rand(batch, heads, rows, width, generator=generator).argsort(-1)
    past = torch.arange(width) >= counts[..., None]
    indices = order.masked_fill(past, width).sort(-1).values
    # Entries past the count are not to be read: give them impossible values.
    indices = indices.masked_fill(past, -7).int()
    keywords = {"q_block_size": q_block, "kv_block_size": kv_block}
    if num_special:
        special = torch.randn(2, batch, heads, num_special, dim, generator=generator, dtype=torch.float64)
        keywords |= {"special_k": special[0], "special_v": special[1]}
    return [q, k, v, counts.int(), indices], keywords


def to(args: list[Tensor], keywords: dict, dtype: torch.dtype) -> tuple[list[Tensor], dict]:
    """The same call with its floating tensors rounded to a dtype."""
    args = [x.to(dtype) if x.is_floating_point() else x for x in args]
    return args, {key: x.to(dtype) if isinstance(x, Tensor) else x for key, x in keywords.items()}
