"""From counts to a compact list of blocks."""

from __future__ import annotations

import pytest
import torch
from hess_plugin.kernels.hess_attention import block_mask
from torch import Tensor

from hess_plugin.sparsity import BlockSelection, select_blocks


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def as_mask(selection: BlockSelection, num_kv_blocks: int) -> Tensor:
    return block_mask(selection.kv_num_blocks, selection.kv_indices, num_kv_blocks)


def test_hand_worked() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.4, 0.3, 0.2, 0.1]]).view(1, 1, 2, 4)
    selection = select_blocks(probs, torch.tensor([[[2, 3]]]))
    assert selection.kv_num_blocks.tolist() == [[[2, 3]]]
    assert selection.kv_indices.tolist() == [[[[1, 3, 0, 0], [0, 1, 2, 0]]]]
    assert selection.kv_num_blocks.dtype == selection.kv_indices.dtype == torch.int32


@pytest.mark.parametrize("blocks", [1, 2, 7, 64])
def test_list_form(blocks: int) -> None:
    probs = random_probs(2, 3, 5, blocks)
    counts = torch.randint(1, blocks + 1, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    selection = select_blocks(probs, counts)
    assert selection.kv_indices.shape == (2, 3, 5, blocks)
    for row, count, row_probs in zip(
        selection.kv_indices.flatten(0, 2), counts.flatten(), probs.flatten(0, 2), strict=True
    ):
        best = row_probs.topk(int(count)).indices.sort().values
        assert row[:count].tolist() == best.tolist()
        assert not row[count:].any()


def test_ties_go_to_the_lowest_index() -> None:
    probs = torch.full((1, 2, 3, 50), 0.02)
    selection = select_blocks(probs, torch.full((1, 2, 3), 4))
    assert (selection.kv_indices[..., :4] == torch.arange(4)).all()


def test_all_blocks() -> None:
    selection = select_blocks(random_probs(1, 2, 3, 9), torch.full((1, 2, 3), 9))
    assert (selection.kv_indices == torch.arange(9)).all()


def test_more_budget_never_removes_a_block() -> None:
    probs = random_probs(2, 2, 4, 17)
    probs[:, 0] = (probs[:, 0] * 20).round() / 20  # with ties
    previous = as_mask(select_blocks(probs, torch.ones(2, 2, 4, dtype=torch.int64)), 17)
    for count in range(2, 18):
        mask = as_mask(select_blocks(probs, torch.full((2, 2, 4), count)), 17)
        assert (mask.sum(-1) == count).all()
        assert (mask | ~previous).all()
        previous = mask
