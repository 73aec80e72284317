"""For every block of keys the rows of queries that attend to it: what the gradient of the keys runs over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Programs that share the rows of keys which all rows attend to: enough to fill a GPU, the same on every one.
_DENSE_PROGRAMS = 1024


class RowLists(NamedTuple):
    """Rows of queries, ascending, for each chunk of rows and block of keys of each head."""

    begins: Tensor  # [B * H, chunks * blocks] int32: where in the head's `rows` a list begins
    counts: Tensor  # [B * H, chunks * blocks] int32: its length, 0 or more
    rows: Tensor  # [B * H, anything] int32
    chunks: int


def transposed_lists(kv_num_blocks: Tensor, kv_indices: Tensor, num_kv_blocks: int) -> RowLists:
    """The lists of blocks turned around, in one chunk, without waiting for the GPU.

    A stable sort by block of all entries, row after row; entries past a row's count come last. Takes about
    25 bytes per entry for a moment.

    Args:
        kv_num_blocks: [B, H, Mq] int32.
        kv_indices: [B, H, Mq, W] int32.
        num_kv_blocks: Mk.

    Example:
        Block 0 is listed by row 1, block 1 by rows 0 and 1, block 2 by none; the last entry is unused.

        >>> counts, indices = torch.tensor([[[1, 2]]]).int(), torch.tensor([[[[1, 0], [0, 1]]]]).int()
        >>> [x.tolist() for x in transposed_lists(counts, indices, num_kv_blocks=3)[:3]]
        [[[0, 1, 3]], [[1, 2, 0]], [[1, 0, 1, 0]]]
    """
    width = kv_indices.shape[3]
    listed = torch.arange(width, device=kv_indices.device) < kv_num_blocks[..., None]
    blocks = kv_indices.masked_fill(~listed, num_kv_blocks).flatten(2).flatten(0, 1)
    blocks, entries = blocks.sort(dim=1, stable=True)
    edges = torch.arange(num_kv_blocks + 1, dtype=blocks.dtype, device=blocks.device)
    begins = torch.searchsorted(blocks, edges.expand(len(blocks), -1).contiguous(), out_int32=True)
    return RowLists(begins[:, :-1].contiguous(), begins.diff(dim=1), (entries // width).int(), chunks=1)


def dense_lists(heads: int, q_blocks: int, kv_blocks: int, device: torch.device) -> RowLists:
    """All rows for every block, in chunks of nearly equal length that programs can share.

    Example:
        >>> lists = dense_lists(heads=512, q_blocks=5, kv_blocks=1, device=torch.device("cpu"))
        >>> lists.begins[0].tolist(), lists.counts[0].tolist(), lists.rows[0].tolist()
        ([0, 2], [2, 3], [0, 1, 2, 3, 4])
    """
    chunks = min(q_blocks, -(-_DENSE_PROGRAMS // (heads * kv_blocks)))
    edges = torch.arange(chunks + 1, dtype=torch.int32, device=device) * q_blocks // chunks
    begins, counts = (
        x.repeat_interleave(kv_blocks).expand(heads, -1).contiguous() for x in (edges[:-1], edges.diff())
    )
    rows = torch.arange(q_blocks, dtype=torch.int32, device=device).expand(heads, -1)
    return RowLists(begins, counts, rows, chunks)
