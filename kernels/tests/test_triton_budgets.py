"""Shared budgets against the rule in words, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import heapq

import pytest
import torch
from torch import Tensor

triton_budgets = pytest.importorskip("hess_attention.triton_budgets")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def filled(weights: Tensor, total: Tensor, capacity: int, floor: int) -> Tensor:
    return triton_budgets.water_fill(weights.to(DEVICE), total.to(DEVICE), capacity, floor).cpu()


def seat_by_seat(weights: list[float], total: int, capacity: int, floor: int) -> list[int]:
    """One seat at a time to the item whose next one has the lowest level, the first of equal ones."""
    weights = [max(w / max(weights), 1e-100) if w > 0 else 0.0 for w in weights] if any(weights) else weights
    least = min((w for w in weights if w > 0), default=1.0)
    weights = [w if w > 0 else 1e-9 * least for w in weights]
    seats = [floor] * len(weights)
    queue = [((floor + 0.5) / w, item) for item, w in enumerate(weights) if floor < capacity]
    heapq.heapify(queue)
    for _ in range(min(total, capacity * len(weights)) - floor * len(weights)):
        _, item = heapq.heappop(queue)
        seats[item] += 1
        if seats[item] < capacity:
            heapq.heappush(queue, ((seats[item] + 0.5) / weights[item], item))
    return seats


def weights_of(kind: str, items: int) -> Tensor:
    generator = torch.Generator().manual_seed(items)
    if kind == "counts":
        return torch.randint(1, 5, (items,), generator=generator).int()
    if kind == "zeros":
        return torch.randint(0, 3, (items,), generator=generator).double()
    spread = {"equal": 0.0, "log-normal": 1.5, "extreme": 9.0}[kind]
    return torch.exp(spread * torch.randn(items, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["counts", "zeros", "equal", "log-normal", "extreme"])
@pytest.mark.parametrize(("items", "capacity", "floor"), [(1, 9, 1), (4, 37, 0), (16, 50, 3), (67, 12, 1)])
def test_seat_by_seat(kind: str, items: int, capacity: int, floor: int) -> None:
    weights = weights_of(kind, items)
    least, most = items * floor, items * capacity
    totals = torch.tensor(
        [least - 1, least, least + 1, (3 * least + most) // 4, (least + most) // 2, most - 1, most, most + 9]
    )
    found = filled(weights, totals, capacity, floor)
    for total, shares in zip(totals.tolist(), found.tolist(), strict=True):
        assert shares == seat_by_seat(weights.tolist(), total, capacity, floor), total
    assert found.dtype == torch.int64


def test_large_budgets_are_exact() -> None:
    """A million tokens: 16 heads of 8094 x 16188 blocks."""
    weights, capacity = weights_of("log-normal", 16), 8094 * 16188
    total = torch.tensor([16 * capacity // 4 + 7])
    shares = filled(weights, total, capacity, floor=8094)[0]
    assert shares.sum() == total
    shares = shares.double()  # a half less than an integer tensor is a float32
    assert shares.max() <= capacity
    # One level parts all seats that are given from all that are not.
    given = ((shares - 0.5) / weights)[shares > 8094]
    refused = ((shares + 0.5) / weights)[shares < capacity]
    assert given.max() <= refused.min()


def test_every_row_has_its_own_weights_and_total() -> None:
    weights = torch.stack([weights_of("counts", 5), weights_of("counts", 5).flip(0)]).view(2, 1, 5)
    totals = torch.tensor([[17], [30]])
    found = filled(weights, totals, 10, 1)
    assert found.shape == (2, 1, 5)
    for each, total, shares in zip(weights[:, 0], totals[:, 0], found[:, 0], strict=True):
        assert shares.tolist() == seat_by_seat([float(w) for w in each], int(total), 10, 1)


def test_a_floor_above_the_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floor must be in \[0, capacity = 3\], got 4"):
        filled(torch.ones(2), torch.tensor([5]), 3, 4)
