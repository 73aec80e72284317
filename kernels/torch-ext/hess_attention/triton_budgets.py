"""Budgets shared out on the GPU in one launch; the twin in PyTorch is `hess_plugin.sparsity.water_fill`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LARGEST = tl.constexpr(0x7FEFFFFFFFFFFFFF)  # bits of the largest float64
_NEVER = tl.constexpr(0x7FFFFFFFFFFFFFFF)
_MARGIN = tl.constexpr(32)  # units in the last place: more than rounding can move a level


def water_fill(weights: Tensor, total_budget: Tensor, capacity: int, floor: int) -> Tensor:
    """Share a budget in proportion to weight, nobody above `capacity` or below `floor`; exact whole numbers.

    Seats go one by one to the item whose next one has the lowest level `(seat + 1/2) / weight`, of equal ones
    to the lowest index. The level at which all are given is found by bisection on its float64 bits.

    Args:
        weights: [M] or [..., M], finite and >= 0, of any type; only ratios matter.
        total_budget: [...] int64, moved into [M * floor, M * capacity].
        capacity: Most of one item, below 2^31.
        floor: Fewest of one item.

    Returns:
        [..., M] int64.

    Raises:
        ValueError: if `floor` does not lie between 0 and `capacity`.
    """
    if not 0 <= floor <= capacity:
        raise ValueError(f"floor must be in [0, capacity = {capacity}], got {floor}.")
    items = weights.shape[-1]
    shares = total_budget.new_empty(*total_budget.shape, items)
    block = triton.next_power_of_2(items)
    with torch.cuda.device_of(weights):  # Triton launches on the current device
        _water_fill_kernel[(total_budget.numel(),)](
            weights.contiguous(),
            0 if weights.ndim == 1 else items,
            total_budget.contiguous(),
            shares,
            items,
            capacity,
            floor,
            BLOCK=block,
            num_warps=min(16, max(1, block // 256)),
        )
    return shares


@triton.jit
def _seats(level_bits, weights, inside, capacity, floor):
    """Shares at a level, float64: rounded to nearest; 0 past the last item."""
    shares = tl.floor(level_bits.to(tl.float64, bitcast=True) * weights + 0.5)
    return tl.where(inside, tl.minimum(tl.maximum(shares, floor), capacity), 0.0)


@triton.jit
def _water_fill_kernel(
    weights_ptr, stride, total_ptr, shares_ptr, items, capacity, floor, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < items
    given = tl.load(weights_ptr + row * stride + index, mask=inside, other=0).to(tl.float64)
    zeros = tl.zeros([BLOCK], tl.float64)
    floor, capacity = zeros + floor, zeros + capacity
    total = tl.load(total_ptr + row).to(tl.float64)
    total = tl.minimum(tl.maximum(total, tl.max(floor * items)), tl.max(capacity * items))
    # Relative to the largest; one of zero is served after all others are full.
    relative = tl.maximum(given / tl.max(given), zeros + 1e-100)
    least = tl.min(tl.where(given > 0, relative, zeros + 1.0))
    weights = tl.where(given > 0, relative, (zeros + 1e-9) * least)

    # The highest level that does not spend more than the total, up to rounding of the product ...
    low, high = tl.full([], 0, tl.int64), tl.full([], _LARGEST, tl.int64)
    for _ in range(63):
        middle = high - ((high - low) >> 1)  # as a division the interpreter rounds it
        fits = tl.sum(_seats(middle, weights, inside, capacity, floor)) <= total
        low, high = tl.where(fits, middle, low), tl.where(fits, high, middle - 1)
    held = _seats(low - _MARGIN, weights, inside, capacity, floor)
    left = (total - tl.sum(held)).to(tl.int32)
    # ... and within it the seats that are left, at most one an item, by their true level.
    is_open = inside & (held < capacity)
    level = tl.where(is_open, ((held + 0.5) / weights).to(tl.int64, bitcast=True), _NEVER)
    first, last = low - 2 * _MARGIN, low + 2 * _MARGIN
    for _ in range(8):
        middle = first + ((last - first) >> 1)
        enough = tl.sum((level <= middle).to(tl.int32)) >= left
        first, last = tl.where(enough, first, middle + 1), tl.where(enough, middle, last)
    below, tied = level < last, level == last
    rank = tl.cumsum(tied.to(tl.int32), axis=0)
    taken = below | (tied & (rank <= left - tl.sum(below.to(tl.int32))))
    tl.store(shares_ptr + row * items + index, held.to(tl.int64) + taken.to(tl.int64), mask=inside)
