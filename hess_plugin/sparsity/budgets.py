"""How many blocks each row, head and layer may attend to. Everything stays on the device of its inputs.

The unit is always one block of the [Mq, Mk] map. Budgets are shared out by a water fill that also rounds:
seats are given one by one, each to the item whose ideal share `level * weight` is the first to round up to
one more as the level rises. So sums are exact, order matters only between exact ties (the lowest index wins),
and a larger total never takes a block from anyone; rounding by largest remainders would not give the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

WaterFill = Callable[[Tensor, Tensor, int, int], Tensor]


def baseline_counts(probs: Tensor, sparse_ratio: float, cdf_threshold: float, cdf_rule: str) -> Tensor:
    """Blocks per row that SparseVGGT keeps: `n = max(⌊Mk (1 - ρ)⌋, count needed by τ, 1)`.

    Rule "cover": the smallest count whose cumulative probability reaches τ, as the paper words it. Rule
    "sparse-vggt": the blocks whose cumulative probability is at most τ + 1e-5, as the public code counts;
    nearly always one block fewer. `sparse_ratio=1` leaves only τ, `cdf_threshold=0` leaves only ρ.

    Args:
        probs: [B, H, Mq, Mk] float32, rows summing to 1.
        sparse_ratio: ρ in [0, 1].
        cdf_threshold: τ in [0, 1].
        cdf_rule: "cover" or "sparse-vggt".

    Returns:
        [B, H, Mq] int64 in [1, Mk].

    Example:
        >>> probs = torch.tensor([0.1, 0.4, 0.2, 0.3]).view(1, 1, 1, 4)
        >>> baseline_counts(probs, sparse_ratio=1, cdf_threshold=0.8, cdf_rule="cover").item()
        3
        >>> baseline_counts(probs, sparse_ratio=1, cdf_threshold=0.8, cdf_rule="sparse-vggt").item()
        2
    """
    by_ratio = ratio_count(probs.shape[-1], sparse_ratio)
    ascending = probs.sort(dim=-1).values
    if cdf_rule == "cover":
        # A block is needed while the mass from it downwards exceeds 1 - τ. Summed from the small end, so that
        # the tail is not lost in rounding; the factor absorbs float32 sums that miss 1 - τ by an ulp.
        by_mass = (ascending.cumsum(-1) > (1 - cdf_threshold) * (1 + 1e-6)).sum(-1)
    else:
        by_mass = (ascending.flip(-1).cumsum(-1) <= cdf_threshold + 1e-5).sum(-1)
    return by_mass.clamp(min=by_ratio)


def ratio_count(num_kv_blocks: int, sparse_ratio: float) -> int:
    """`max(⌊Mk (1 - ρ)⌋, 1)`: the blocks of a row that the sparse ratio alone asks for."""
    # 10 * (1 - 0.9) is 0.99999..., which must count as one block.
    return max(math.floor(num_kv_blocks * (1 - sparse_ratio) + 1e-9), 1)


def water_fill(weights: Tensor, total_budget: Tensor, capacity: int, floor: int) -> Tensor:
    """Share a budget in proportion to weight, nobody above `capacity` or below `floor` (section 3.3.3).

    The fixed point of the paper's capping loop, solved at once: `share = clamp(s * weight, floor, capacity)`
    with the one level s that spends the total. Shares are whole blocks, rounded to nearest at that level, and
    sum exactly to the total. A weight of zero gets the floor, and more only when every other share is full. A
    total that cannot be met is moved into [M * floor, M * capacity].

    Args:
        weights: [M] or [..., M], finite and >= 0; only ratios matter.
        total_budget: [...] int64, blocks to share out over each M items.
        capacity: Most blocks of one item.
        floor: Fewest blocks of one item, 0 <= floor <= capacity.

    Returns:
        [..., M] int64.

    Raises:
        ValueError: if `floor` does not lie between 0 and `capacity`.

    Example:
        The paper's Fig. 3 with numbers: four heads of 15 blocks each, scores 10 : 3 : 1 : 1, capacity 20.

        >>> baseline = torch.tensor([15, 15, 15, 15])
        >>> scores = torch.tensor([10.0, 3.0, 1.0, 1.0])
        >>> baseline.sum() * scores / scores.sum()  # Eq. 10: the first head exceeds its capacity by 20
        tensor([40., 12.,  4.,  4.])

        Its surplus goes to the others as 12, 4 and 4. That makes 20, 24, 8, 8: now the second head is 4 above
        capacity, which go to the last two. Nothing is left over:

        >>> water_fill(scores, baseline.sum()[None], capacity=20, floor=1)
        tensor([[20, 20, 10, 10]])
    """
    if not 0 <= floor <= capacity:
        raise ValueError(f"floor must be in [0, capacity = {capacity}], got {floor}.")
    items = weights.shape[-1]
    weights = _all_positive(weights.double()).expand(*total_budget.shape, items)
    total = total_budget.clamp(items * floor, items * capacity)[..., None]

    def seats(level: Tensor) -> Tensor:
        return (level * weights + 0.5).floor().clamp(floor, capacity).long()

    # Rounding moves a share by at most half a seat, so the true level lies between those of shares moved by
    # half a seat up and down. Both sums are whole numbers, so float64 cannot put them on the wrong side.
    held = seats(_level(weights, total, capacity, floor, shift=0.5))
    most = seats(_level(weights, total, capacity, floor, shift=-0.5))
    return _give_cheapest(held, most, weights, total - held.sum(-1, keepdim=True))


def row_counts(
    head_budget: Tensor, baseline: Tensor, num_kv_blocks: int, fill: WaterFill = water_fill
) -> Tensor:
    """Spread each head's budget over its rows in proportion to the baseline counts.

    At least one and at most `num_kv_blocks` per row; rows with equal baselines differ by at most one.

    Args:
        head_budget: [B, H] int64 in [Mq, Mq * Mk].
        baseline: [B, H, Mq] integers, from `baseline_counts`.
        num_kv_blocks: Mk.
        fill: `water_fill` or an equal of it.

    Returns:
        [B, H, Mq] int64; sums over rows to `head_budget`.

    Example:
        >>> row_counts(torch.tensor([[9]]), torch.tensor([[[4, 1, 1]]]), num_kv_blocks=5)
        tensor([[[5, 2, 2]]])
    """
    return fill(baseline, head_budget, num_kv_blocks, 1)


def _all_positive(weights: Tensor) -> Tensor:
    """Weights relative to the largest, zeros replaced by a value that is served after all others are full."""
    positive = weights > 0
    relative = (weights / weights.amax(-1, keepdim=True)).clamp(min=1e-100)
    least = torch.where(positive, relative, 1.0).amin(-1, keepdim=True)
    return torch.where(positive, relative, 1e-9 * least)


def _level(weights: Tensor, total: Tensor, capacity: int, floor: int, shift: float) -> Tensor:
    """The s for which `clamp(s * weights + shift, floor, capacity)` sums to the total: [..., 1] float64.

    The sum is linear in s between the levels at which an item leaves the floor or becomes full. Items do both
    in order of weight, so each such level needs only the number of items past either event.
    """
    ordered = weights.sort(dim=-1, descending=True).values
    leaves, fills = (floor - shift) / ordered, (capacity - shift) / ordered
    levels = torch.cat([leaves, fills], dim=-1).sort(dim=-1).values  # [..., 2M]
    above = torch.searchsorted(leaves, levels, right=True)
    full = torch.searchsorted(fills, levels, right=True)
    # Summed from the light end: the weight of few light items survives beside heavy ones that are full.
    tail = torch.nn.functional.pad(ordered.flip(-1).cumsum(-1).flip(-1), (0, 1))
    slope = tail.gather(-1, full) - tail.gather(-1, above)
    # In float64: an integer tensor times 0.5 is a float32, too coarse for the blocks of a million tokens.
    fixed = capacity * full + floor * (weights.shape[-1] - above) + shift * (above - full).double()
    last = ((fixed + slope * levels <= total).sum(-1, keepdim=True) - 1).clamp(min=0)
    levels, slope, fixed = (x.gather(-1, last) for x in (levels, slope, fixed))
    return torch.where(slope > 0, (total - fixed) / slope, levels)


def _give_cheapest(held: Tensor, most: Tensor, weights: Tensor, left: Tensor) -> Tensor:
    """Add the `left` seats of lowest level to those `held`, no item beyond `most`.

    `most - held` sums to at most 2 M: M for the half seats up and down, M for what `floor` drops. The open
    seats are listed in that fixed width, so that no size has to be read from the device.
    """
    items = held.shape[-1]
    ends = (most - held).cumsum(-1)
    slot = torch.arange(2 * items, device=held.device).expand(*held.shape[:-1], 2 * items).contiguous()
    owner = torch.searchsorted(ends, slot, right=True)
    unused = owner >= items
    owner = owner.clamp(max=items - 1)
    seat = slot - (ends - (most - held)).gather(-1, owner) + held.gather(-1, owner)
    level = ((seat.double() + 0.5) / weights.gather(-1, owner)).masked_fill(unused, math.inf)
    order = level.argsort(dim=-1, stable=True)
    given = (slot < left).long()
    return held.scatter_add(-1, owner.gather(-1, order), given)
