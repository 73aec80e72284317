"""Which blocks a layer selects: totals, ranks, symmetries, and what more budget does."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from hess_plugin.kernels.hess_attention import block_mask
from layer_inputs import LAYOUTS, SMALL, WEIGHTS, block_map, patches, select, tokens
from torch import Tensor
from torch.nn import functional as F

from hess_plugin.backbones.base import TokenLayout
from hess_plugin.benchmark.stopwatch import Stopwatch, _TimedPlan
from hess_plugin.config import HeSSConfig
from hess_plugin.sparsity import BlockPlan, BlockSelection, plan


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ratio", "threshold"), [(0.5, 0.0), (0.8, 0.4), (1.0, 0.9)])
def test_allocations_spend_the_same_total(layout: TokenLayout, ratio: float, threshold: float) -> None:
    q, k, _ = patches(tokens(layout, batch=2), layout)
    config = replace(SMALL, sparse_ratio=ratio, cdf_threshold=threshold)
    totals = [
        select(q, k, WEIGHTS, replace(config, allocation=allocation)).kv_num_blocks.sum((1, 2))
        for allocation in ("hess", "uniform", "reverse")
    ]
    assert torch.equal(totals[0], totals[1])
    assert torch.equal(totals[0], totals[2])


def test_budgets_follow_the_scores() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.0)
    kept = {
        allocation: select(q, k, WEIGHTS, replace(config, allocation=allocation))
        .kv_num_blocks.sum(-1)[0]
        .tolist()
        for allocation in ("hess", "reverse")
    }
    ranked = sorted(range(4), key=lambda head: WEIGHTS[head])
    assert sorted(kept["hess"]) == [kept["hess"][head] for head in ranked]
    assert len(set(kept["hess"])) == 4
    # The head of rank r gets what the head of rank H - 1 - r would have had.
    assert [kept["reverse"][head] for head in ranked] == [kept["hess"][head] for head in reversed(ranked)]


def test_shuffling_hands_the_same_budgets_to_other_heads() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.0)

    def kept(config: HeSSConfig, weights: tuple[float, ...] = WEIGHTS) -> list[int]:
        return select(q, k, weights, config).kv_num_blocks.sum(-1)[0].tolist()

    hess = kept(config)
    orders = {tuple(kept(replace(config, allocation="shuffled", shuffle_seed=seed))) for seed in range(20)}
    assert len(orders) > 5
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(hess))}
    assert kept(replace(config, allocation="shuffled")) == kept(replace(config, allocation="shuffled"))
    # Layers are shuffled apart: where each place comes from differs between two sets of weights.
    places = set()
    for scale in range(1, 8):
        weights = tuple(w + 1e-9 * scale for w in WEIGHTS)
        order = kept(replace(config, allocation="shuffled"), weights)
        places.add(tuple(order))
    assert len(places) > 1


@pytest.mark.parametrize("ratio", [0.3, 0.6])  # sparser, and the floor of one block per row rules
def test_dropped_surplus_is_what_exceeds_the_capacity(ratio: float) -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=ratio, cdf_threshold=0.0)
    weights = (0.9, 0.05, 0.03, 0.02)
    uniform = select(q, k, None, replace(config, allocation="uniform")).kv_num_blocks
    rows, total = uniform.shape[2], int(uniform.sum())
    capacity = rows * -(-k.shape[2] // config.kv_block_size)
    dropped = select(q, k, weights, replace(config, surplus="drop")).kv_num_blocks.sum(-1)[0]
    assert dropped[0] == min(capacity, round(0.9 * total))
    for head, weight in enumerate(weights[1:], start=1):
        assert int(dropped[head]) == pytest.approx(max(rows, weight * total), abs=3 * rows)
    kept = select(q, k, weights, config).kv_num_blocks.sum(-1)[0]
    assert (dropped <= kept).all()
    assert int(kept.sum()) == total >= int(dropped.sum())
    if 0.9 * total > capacity:
        assert int(dropped.sum()) < total


def test_selection_permutes_with_the_heads() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.6)
    order = [2, 0, 3, 1]
    permuted = block_map(q[:, order], k[:, order], tuple(WEIGHTS[h] for h in order), config)
    assert torch.equal(permuted, block_map(q, k, WEIGHTS, config)[:, order])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", [0.3, 0.75, 0.9, 1.0])
def test_equal_scores_give_the_uniform_masks(layout: TokenLayout, ratio: float) -> None:
    q, k, _ = patches(tokens(layout, batch=2), layout)
    config = replace(SMALL, sparse_ratio=ratio, cdf_threshold=0.0)
    uniform = block_map(q, k, None, replace(config, allocation="uniform"))
    for allocation in ("hess", "reverse"):
        assert torch.equal(block_map(q, k, (0.25,) * 4, replace(config, allocation=allocation)), uniform)


def test_equal_scores_under_a_threshold_give_equal_budgets() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=1.0, cdf_threshold=0.9)
    uniform = select(q, k, None, replace(config, allocation="uniform")).kv_num_blocks.sum(-1)
    equal = select(q, k, (0.25,) * 4, config).kv_num_blocks.sum(-1)
    assert uniform.max() - uniform.min() > 1  # here heads differ in their baselines
    assert equal.max() - equal.min() <= 1
    assert equal.sum() == uniform.sum()


def test_a_single_head_keeps_its_uniform_rows() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout, heads=1), layout)
    config = replace(SMALL, sparse_ratio=1.0, cdf_threshold=0.9)
    uniform = block_map(q, k, None, replace(config, allocation="uniform"))
    assert len(uniform.sum(-1).unique()) > 1
    assert torch.equal(block_map(q, k, (1.0,), config), uniform)


@pytest.mark.parametrize("allocation", ["hess", "uniform", "reverse"])
def test_more_budget_never_removes_a_block(allocation: str) -> None:
    layout = TokenLayout(5, 5, (5, 7))
    q, k, _ = patches(tokens(layout, batch=2), layout)
    config = replace(SMALL, cdf_threshold=0.0, allocation=allocation)
    previous = block_map(q, k, WEIGHTS, replace(config, sparse_ratio=1.0))
    for kept in range(2, previous.shape[-1] + 1):
        mask = block_map(q, k, WEIGHTS, replace(config, sparse_ratio=1 - kept / previous.shape[-1]))
        assert (mask | ~previous).all()
        assert mask.sum() > previous.sum()
        previous = mask
    assert previous.all()


def test_uniform_keeps_the_sparse_vggt_counts() -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = patches(tokens(layout), layout)
    config = replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.6, allocation="uniform", cdf_rule="sparse-vggt")
    blocks = block_map(q, k, None, config)
    pooled_q = torch.stack([x.mean(2) for x in q.split(16, dim=2)], dim=2)
    pooled_k = torch.stack([x.mean(2) for x in k.split(8, dim=2)], dim=2)
    probs = (pooled_q @ pooled_k.transpose(-2, -1) / 8**0.5).softmax(-1)
    ranked = probs.sort(-1, descending=True)
    cumulative = ranked.values.cumsum(-1)
    by_mass = torch.searchsorted(
        cumulative, torch.full((*probs.shape[:-1], 1), 0.6 + 1e-5).double(), right=True
    )
    counts = by_mass.clamp(min=int(probs.shape[-1] * 0.2), max=probs.shape[-1]).clamp(min=1)
    expected = torch.zeros_like(blocks).scatter(
        -1, ranked.indices, torch.arange(probs.shape[-1]).expand_as(probs) < counts
    )
    assert torch.equal(blocks, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_selection_never_waits_for_the_gpu(backend: str) -> None:
    layout = TokenLayout(6, 5, (6, 7))
    q, k, _ = F.pad(patches(tokens(layout), layout).float(), (0, 8)).cuda()  # the kernels take 16 channels
    config = replace(SMALL, kv_block_size=16, sparse_ratio=0.8, cdf_threshold=0.6, backend=backend)
    expected = block_map(q.cpu(), k.cpu(), WEIGHTS, replace(config, backend="reference"))
    select(q, k, WEIGHTS, config)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        selection = select(q, k, WEIGHTS, config)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = block_mask(selection.kv_num_blocks, selection.kv_indices, expected.shape[-1])
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("timed", [False, True])
def test_lists_of_two_groups_of_heads_never_exist_at_once(
    timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million tokens each takes half a gigabyte: what the caller lets go of is gone before the next."""
    made: list[weakref.ref] = []

    def select_blocks(probs: Tensor, counts: Tensor) -> BlockSelection:
        assert [ref for ref in made if ref() is not None] == []
        selection = plan.Steps().select_blocks(probs, counts)
        made.append(weakref.ref(selection.kv_indices))
        return selection

    monkeypatch.setattr(plan, "MAP_BYTES", 1)
    monkeypatch.setattr(plan, "_steps", lambda backend: plan.Steps(select_blocks=select_blocks))
    q, k, _ = patches(tokens(LAYOUTS[0]), LAYOUTS[0])
    call = (q, k, WEIGHTS, SMALL)
    for _, selection in _TimedPlan(Stopwatch(q.device), BlockPlan, *call) if timed else BlockPlan(*call):
        del selection
    assert len(made) == 4
