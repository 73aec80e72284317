"""Lists of rows per block of keys, from lists of blocks per row of queries."""

from __future__ import annotations

import doctest

import pytest
import torch
from attention_cases import random_case
from hess_attention import block_mask, transpose
from hess_attention.transpose import RowLists, dense_lists, transposed_lists


def rows_of(lists: RowLists, head: int, index: int) -> list[int]:
    begin = int(lists.begins[head, index])
    return lists.rows[head, begin : begin + int(lists.counts[head, index])].tolist()


def test_examples() -> None:
    results = doctest.testmod(transpose)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("seed", range(3))
def test_transposed_lists(seed: int) -> None:
    (_, _, _, counts, indices), _ = random_case(2, 3, 190, 16, 0, 32, 16, seed=seed)
    lists = transposed_lists(counts, indices, 12)
    mask = block_mask(counts, indices, 12).flatten(0, 1)
    for head in range(6):
        for block in range(12):
            assert rows_of(lists, head, block) == mask[head, :, block].nonzero()[:, 0].tolist()
    assert lists.begins.dtype == lists.counts.dtype == lists.rows.dtype == torch.int32


@pytest.mark.parametrize(("heads", "q_blocks", "kv_blocks"), [(1, 1, 1), (2, 7, 3), (16, 1024, 10)])
def test_dense_lists(heads: int, q_blocks: int, kv_blocks: int) -> None:
    """For every block, the chunks one after the other are all rows, and none is empty."""
    lists = dense_lists(heads, q_blocks, kv_blocks, torch.device("cpu"))
    assert lists.begins.shape == lists.counts.shape == (heads, lists.chunks * kv_blocks)
    for block in range(kv_blocks):
        chunks = [rows_of(lists, heads - 1, chunk * kv_blocks + block) for chunk in range(lists.chunks)]
        assert all(chunks)
        assert [row for chunk in chunks for row in chunk] == list(range(q_blocks))
    assert lists.chunks == q_blocks or lists.chunks * heads * kv_blocks >= 1024
