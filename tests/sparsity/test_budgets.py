"""Counts per row, budgets per head: the laws of section 3.3 of the paper."""

from __future__ import annotations

import heapq

import pytest
import torch
from torch import Tensor

from hess_plugin.sparsity import baseline_counts, row_counts, water_fill


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def random_weights(kind: str, items: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "ties":
        return torch.randint(0, 4, (items,), generator=generator).double()
    spread = {"even": 0.1, "log-normal": 1.5, "extreme": 8.0}[kind]
    return torch.exp(spread * torch.randn(items, generator=generator, dtype=torch.float64))


def capping_loop(weights: list[float], total: float, capacity: float) -> list[float]:
    """The paper's iterative capping (3.3.3) in its own four steps, without rounding and without a floor."""
    budget = [total * w / sum(weights) for w in weights]
    final: dict[int, float] = {}
    while True:
        overflow = [h for h, b in enumerate(budget) if h not in final and b > capacity]
        surplus = sum(budget[h] - capacity for h in overflow)
        final.update({h: capacity for h in overflow})
        open_heads = [h for h in range(len(weights)) if h not in final]
        if surplus == 0 or not open_heads:
            return [final.get(h, budget[h]) for h in range(len(weights))]
        open_weight = sum(weights[h] for h in open_heads)
        for h in open_heads:
            budget[h] += surplus * weights[h] / open_weight


def seat_by_seat(weights: list[float], total: int, capacity: int, floor: int) -> list[int]:
    """The definition of the rounding: one seat at a time to the share that rounds up first."""
    least = min((w for w in weights if w > 0), default=1.0)
    weights = [w if w > 0 else 1e-9 * least for w in weights]
    seats = [floor] * len(weights)
    queue = [((floor + 0.5) / w, h) for h, w in enumerate(weights) if floor < capacity]
    heapq.heapify(queue)
    for _ in range(total - floor * len(weights)):
        _, h = heapq.heappop(queue)
        seats[h] += 1
        if seats[h] < capacity:
            heapq.heappush(queue, ((seats[h] + 0.5) / weights[h], h))
    return seats


# Baseline counts.


@pytest.mark.parametrize(
    ("blocks", "ratio", "expected"),
    [
        (10, 0.9, 1),
        (10, 0.7, 3),
        (1000, 0.8, 200),
        (2000, 0.9, 200),
        (49, 0.75, 12),
        (7, 0.0, 7),
        (7, 1.0, 1),
    ],
)
@pytest.mark.parametrize("rule", ["cover", "sparse-vggt"])
def test_ratio_alone(blocks: int, ratio: float, expected: int, rule: str) -> None:
    counts = baseline_counts(random_probs(2, 3, 4, blocks), ratio, 0.0, rule)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, torch.full((2, 3, 4), expected))


@pytest.mark.parametrize(
    ("threshold", "cover", "sparse_vggt"),
    [
        (0.0, 1, 1),
        (0.3, 1, 1),
        (0.4, 1, 1),
        (0.45, 2, 1),
        (0.7, 2, 2),
        (0.8, 3, 2),
        (0.95, 4, 3),
        (1.0, 4, 4),
    ],
)
def test_threshold_hand_worked(threshold: float, cover: int, sparse_vggt: int) -> None:
    probs = torch.tensor([0.2, 0.4, 0.1, 0.3]).view(1, 1, 1, 4)  # cumulative 0.4, 0.7, 0.9, 1
    assert baseline_counts(probs, 1.0, threshold, "cover").item() == cover
    assert baseline_counts(probs, 1.0, threshold, "sparse-vggt").item() == sparse_vggt


@pytest.mark.parametrize("blocks", [3, 7, 10, 49, 64])
def test_cover_is_exact_on_equal_probabilities(blocks: int) -> None:
    probs = torch.zeros(1, 1, 1, blocks).softmax(-1)
    for count in range(1, blocks + 1):
        assert baseline_counts(probs, 1.0, count / blocks, "cover").item() == count


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.97])
def test_threshold_properties(threshold: float) -> None:
    probs = random_probs(2, 3, 5, 31)
    descending = probs.double().sort(-1, descending=True).values
    covered = torch.cat([torch.zeros(2, 3, 5, 1), descending.cumsum(-1)], dim=-1)
    cover = baseline_counts(probs, 1.0, threshold, "cover")[..., None]
    assert (covered.gather(-1, cover) >= threshold - 1e-5).all()
    assert (covered.gather(-1, cover - 1) < threshold).all()
    public = baseline_counts(probs, 1.0, threshold, "sparse-vggt")[..., None]
    assert torch.equal(public, (cover - 1).clamp(min=1))


def test_threshold_of_one_keeps_everything() -> None:
    probs = random_probs(1, 2, 3, 200)
    assert (baseline_counts(probs, 1.0, 1.0, "cover") == 200).all()


def test_the_larger_of_both_criteria_counts() -> None:
    probs = random_probs(1, 4, 6, 20)
    by_ratio = baseline_counts(probs, 0.8, 0.0, "cover")
    by_mass = baseline_counts(probs, 1.0, 0.9, "cover")
    both = baseline_counts(probs, 0.8, 0.9, "cover")
    assert torch.equal(both, torch.maximum(by_ratio, by_mass))
    assert (both > by_ratio).any()
    assert (both > by_mass).any()


# Water fill.

KINDS = ["even", "log-normal", "extreme", "ties"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_water_fill_equals_the_definition(kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items, capacity = (int(torch.randint(1, 20, (), generator=generator)) for _ in range(2))
    floor = int(torch.randint(0, capacity + 1, (), generator=generator))
    total = int(torch.randint(items * floor, items * capacity + 1, (), generator=generator))
    weights = random_weights(kind, items, seed)
    budget = water_fill(weights, torch.tensor([total]), capacity, floor)
    assert budget[0].tolist() == seat_by_seat(weights.tolist(), total, capacity, floor)


@pytest.mark.parametrize("kind", ["even", "log-normal"])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_water_fill_is_the_papers_loop_to_rounding(kind: str, density: float, seed: int) -> None:
    weights, capacity = random_weights(kind, 16, seed), 100_000
    total = round(16 * capacity * density)
    ideal = torch.tensor(capping_loop(weights.tolist(), total, capacity), dtype=torch.float64)
    budget = water_fill(weights, torch.tensor([total]), capacity, floor=0)[0]
    # Half a block of its own, and its part of what the rounding of 15 others leaves over.
    assert (budget - ideal).abs().max() <= 8
    if kind == "log-normal" and density >= 0.5:
        assert (ideal == capacity).any()  # the loop had something to cap


def test_water_fill_figure_3_with_repeated_capping() -> None:
    # The doctest of water_fill, then one that does not come out in whole blocks.
    assert capping_loop([10.0, 3.0, 1.0, 1.0], 60, 20) == pytest.approx([20, 20, 10, 10])
    assert capping_loop([12.0, 3.0, 1.0], 30, 16) == pytest.approx([16, 10.5, 3.5])
    assert water_fill(torch.tensor([12.0, 3.0, 1.0]), torch.tensor([30]), 16, 1).tolist() == [[16, 11, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_water_fill_laws(kind: str) -> None:
    heads, capacity, floor = 16, 25 * 49, 25
    weights = torch.stack([random_weights(kind, heads, seed) for seed in range(8)])
    total = torch.linspace(heads * floor, heads * capacity, 8).long()
    budget = water_fill(weights, total, capacity, floor)
    assert budget.dtype == torch.int64
    assert torch.equal(budget.sum(-1), total)
    assert (budget >= floor).all()
    assert (budget <= capacity).all()
    follows = (weights[:, :, None] <= weights[:, None]) | (budget[:, :, None] >= budget[:, None])
    assert follows.all()
    for item in range(8):  # a batch is its items one by one
        alone = water_fill(weights[item], total[item : item + 1], capacity, floor)
        assert torch.equal(alone[0], budget[item])


def test_water_fill_permutes_with_the_heads() -> None:
    weights, total = random_weights("log-normal", 16, 0), torch.tensor([4321])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    budget = water_fill(weights, total, 1225, 25)
    assert len(budget.unique()) > 8
    assert torch.equal(water_fill(weights[order], total, 1225, 25), budget[:, order])


@pytest.mark.parametrize("kind", KINDS)
def test_more_total_never_takes_a_block(kind: str) -> None:
    total = torch.arange(5 * 3, 5 * 30 + 1)
    budget = water_fill(random_weights(kind, 5, 3), total, 30, 3)
    assert torch.equal(budget.sum(-1), total)
    assert (budget.diff(dim=0) >= 0).all()


def test_equal_weights_get_equal_budgets() -> None:
    assert water_fill(torch.full((6,), 0.1), torch.tensor([600]), 200, 1).tolist() == [[100] * 6]
    # What does not divide goes to the lowest heads.
    assert water_fill(torch.ones(3), torch.tensor([8]), 200, 1).tolist() == [[3, 3, 2]]


def test_only_ratios_of_weights_matter() -> None:
    weights, total = random_weights("log-normal", 16, 5), torch.tensor([5000])
    budget = water_fill(weights, total, 1225, 25)
    for scale in (2.0**-40, 2.0**40):
        assert torch.equal(water_fill(weights * scale, total, 1225, 25), budget)


def test_zero_weights_get_the_floor_until_the_others_are_full() -> None:
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0])
    assert water_fill(weights, torch.tensor([12]), 10, 2).tolist() == [[2, 6, 2, 2]]
    assert water_fill(weights, torch.tensor([24]), 10, 2).tolist() == [[2, 10, 10, 2]]
    assert water_fill(weights, torch.tensor([28]), 10, 2).tolist() == [[4, 10, 10, 4]]


def test_a_heavy_head_does_not_blur_the_light_ones() -> None:
    # Beside a weight of 1, sums in float64 would lose the other altogether.
    weights = torch.tensor([1e-20, 1.0], dtype=torch.float64)
    assert water_fill(weights, torch.tensor([1419]), 745, 1).tolist() == [[674, 745]]


def test_impossible_totals_and_floors() -> None:
    weights = torch.tensor([1.0, 2.0])
    assert water_fill(weights, torch.tensor([0, 99]), 5, 2).tolist() == [[2, 2], [5, 5]]
    with pytest.raises(ValueError, match=r"floor must be in \[0, capacity = 5\], got 6"):
        water_fill(weights, torch.tensor([9]), 5, 6)


def test_budgets_of_a_million_tokens() -> None:
    weights, capacity, floor = random_weights("log-normal", 16, 2), 8192 * 15625, 8192
    total = torch.tensor([16 * capacity // 4])
    budget = water_fill(weights, total, capacity, floor)
    assert torch.equal(budget.sum(-1), total)
    assert (budget.max() <= capacity) & (budget.min() >= floor)


# Rows.


def test_rows_without_change_are_the_baseline() -> None:
    baseline = torch.randint(1, 32, (2, 4, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(row_counts(baseline.sum(-1), baseline, 31), baseline)


def test_rows_follow_the_baseline() -> None:
    baseline = torch.tensor([[[2, 4, 6]]])
    assert row_counts(torch.tensor([[24]]), baseline, 20).tolist() == [[[4, 8, 12]]]
    assert row_counts(torch.tensor([[24]]), baseline, 10).tolist() == [[[5, 9, 10]]]
    assert row_counts(torch.tensor([[3]]), baseline, 10).tolist() == [[[1, 1, 1]]]


@pytest.mark.parametrize("seed", range(5))
def test_rows_laws(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    baseline = torch.randint(1, 14, (2, 3, 11), generator=generator)
    previous = torch.zeros_like(baseline)
    for total in range(11, 11 * 13 + 1, 4):
        counts = row_counts(torch.full((2, 3), total), baseline, 13)
        assert torch.equal(counts.sum(-1), torch.full((2, 3), total))
        assert (counts >= 1).all()
        assert (counts <= 13).all()
        assert (counts >= previous).all()
        previous = counts


def test_equal_rows_differ_by_at_most_one() -> None:
    budget = torch.tensor([[7, 30, 41, 70]])
    counts = row_counts(budget, torch.full((1, 4, 7), 3), 10)
    assert torch.equal(counts.sum(-1), budget)
    assert (counts.amax(-1) - counts.amin(-1) <= 1).all()


def test_large_budgets_follow_one_level() -> None:
    """A million tokens: 16 heads of 8094 x 16188 blocks; one level parts what is given from the rest."""
    weights, capacity, floor = random_weights("log-normal", 16, seed=0), 8094 * 16188, 8094
    total = torch.tensor([16 * capacity // 4 + 7])
    shares = water_fill(weights, total, capacity, floor)[0]
    assert shares.sum() == total
    given = ((shares.double() - 0.5) / weights)[shares > floor]
    assert given.max() <= ((shares.double() + 0.5) / weights)[shares < capacity].min()


@pytest.mark.parametrize("kind", ["even", "log-normal", "extreme", "ties"])
def test_the_kernel_shares_in_the_same_way(kind: str) -> None:
    kernel = pytest.importorskip("hess_plugin.kernels.hess_attention.triton_budgets")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for seed, (items, capacity, floor) in enumerate([(1, 7, 0), (16, 8094 * 16188, 8094), (61, 240, 1)]):
        weights = torch.stack([random_weights(kind, items, seed), random_weights(kind, items, seed + 1)])
        total = torch.tensor([items * (2 * floor + capacity) // 3 + 1, items * (floor + capacity) // 2])
        found = kernel.water_fill(weights.to(device), total.to(device), capacity, floor).cpu()
        assert torch.equal(found, water_fill(weights, total, capacity, floor))
