"""The blocks of one layer, for some heads at a time: maps and lists of all heads never exist at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import HeSSConfig
from ..kernels.hess_attention import resolve_backend
from . import budgets, pooling, selection
from .selection import BlockSelection

MAP_BYTES = 2**29  # of the probabilities held at once; the lists take as much again


class Steps(NamedTuple):
    """What is computed per token, block or row; all implementations agree but for rounding."""

    pool_blocks: Callable[[Tensor, int], Tensor] = pooling.pool_blocks
    baseline_counts: Callable[[Tensor, float, float, str], Tensor] = budgets.baseline_counts
    select_blocks: Callable[[Tensor, Tensor], BlockSelection] = selection.select_blocks
    water_fill: budgets.WaterFill = budgets.water_fill


class BlockPlan:
    """Which blocks a layer attends to; what the method is, in the order of the paper's section 3.3.

    1. Estimate attention between blocks.
    2. Count the blocks that SparseVGGT would keep in each row; "uniform" stops here.
    3. The sum over a layer's heads and rows is its total budget (3.3.1). Under a CDF threshold the baseline
       differs between heads; only the sum enters the method.
    4. Share the total over heads by their weights (3.3.2, 3.3.3), at least one block per row; "reverse" gives
       the head of rank r the weight of rank H - 1 - r, "shuffled" each head the weight of a random one. With
       `surplus="drop"` what a head cannot use is lost, so that less than the total is spent.
    5. Spread each head's budget over its rows in proportion to the baseline, and keep the most probable.

    Equal weights give every head the same budget. That is the "uniform" selection if only the sparse ratio is
    set; with a CDF threshold it has the same total, but heads of unequal baselines differ.

    Iterating gives slices of heads with their `BlockSelection`, each item of the batch on its own. Budgets
    need the counts of all heads, so with a threshold the maps of several groups of heads are computed twice.

    Attributes:
        row_counts: [B, H, Mq] int64, blocks that each row attends to.
    """

    @torch.no_grad()
    def __init__(
        self, q: Tensor, k: Tensor, head_weights: Sequence[float] | None, config: HeSSConfig
    ) -> None:
        """Decide how many blocks each row gets.

        Args:
            q: [B, H, N, D] patch queries of all views, special tokens removed.
            k: [B, H, N, D] patch keys.
            head_weights: [H]; not looked at for `allocation="uniform"`.
            config: thresholds, allocation, block sizes and backend.

        Raises:
            ValueError: the weights are not one per head, or the backend cannot run here.
        """
        self._config = config
        blocks = config.q_block_size, config.kv_block_size
        self._steps = _steps(resolve_backend(config.backend, q.device, q.dtype, q.shape[3], *blocks))
        self._q = self._steps.pool_blocks(q, config.q_block_size)
        self._k = self._steps.pool_blocks(k, config.kv_block_size)
        batch, heads, q_blocks, _ = self._q.shape
        at_once = max(1, MAP_BYTES // (4 * batch * q_blocks * self._k.shape[2]))
        self._groups = [slice(start, start + at_once) for start in range(0, heads, at_once)]
        self._map: Tensor | None = None  # of all heads, where they are one group
        self.row_counts = self._baseline()
        if config.allocation != "uniform" and head_weights is not None:
            self.row_counts = self._share_out(head_weights)

    def __iter__(self) -> Iterator[tuple[slice, BlockSelection]]:
        # No variable here, and no decorator of a generator, keeps a selection until the next one is made.
        for heads in self._groups:
            yield heads, self._select(heads)

    @torch.no_grad()
    def _select(self, heads: slice) -> BlockSelection:
        return self._steps.select_blocks(self._probs(heads), self.row_counts[:, heads])

    def _probs(self, heads: slice) -> Tensor:
        if len(self._groups) > 1:
            return pooling.block_probs(self._q[:, heads], self._k[:, heads])
        if self._map is None:
            self._map = pooling.block_probs(self._q, self._k)
        return self._map

    def _baseline(self) -> Tensor:
        config = self._config
        if config.cdf_threshold == 0:  # no map is needed
            count = budgets.ratio_count(self._k.shape[2], config.sparse_ratio)
            return torch.full(self._q.shape[:3], count, device=self._q.device)
        settings = (config.sparse_ratio, config.cdf_threshold, config.cdf_rule)
        parts = [self._steps.baseline_counts(self._probs(heads), *settings) for heads in self._groups]
        return torch.cat(parts, dim=1)

    def _share_out(self, head_weights: Sequence[float]) -> Tensor:
        _, heads, q_blocks = self.row_counts.shape
        kv_blocks = self._k.shape[2]
        if len(head_weights) != heads:
            raise ValueError(
                f"head_weights has {len(head_weights)} entries, q has {heads} heads; "
                "were the scores calibrated on another backbone?"
            )
        if self._config.allocation == "reverse":
            head_weights = _reversed_ranks(head_weights)
        elif self._config.allocation == "shuffled":
            head_weights = _shuffled(head_weights, self._config.shuffle_seed)
        # From pageable memory a small non-blocking copy is safe, and it does not wait for the GPU.
        weights = torch.tensor(head_weights, dtype=torch.float64).to(self._q.device, non_blocking=True)
        total = self.row_counts.sum((1, 2))
        capacity = q_blocks * kv_blocks
        reach = capacity if self._config.surplus == "redistribute" else heads * capacity
        budget = self._steps.water_fill(weights, total, reach, q_blocks).clamp(max=capacity)
        return budgets.row_counts(budget, self.row_counts, kv_blocks, self._steps.water_fill)


def _reversed_ranks(weights: Sequence[float]) -> list[float]:
    """The same weights, the largest where the smallest was and so on."""
    order = sorted(range(len(weights)), key=weights.__getitem__)
    swapped = dict(zip(order, reversed(order), strict=True))
    return [weights[swapped[head]] for head in range(len(weights))]


def _shuffled(weights: Sequence[float], seed: int) -> list[float]:
    """The same weights in an order drawn by seed and weights, so that layers are shuffled apart."""
    return random.Random(f"{seed} {tuple(weights)}").sample(list(weights), len(weights))


def _steps(backend: str) -> Steps:
    """The steps that go with an attention backend."""
    if backend != "triton":
        return Steps()
    from ..kernels.hess_attention import triton_budgets
    from ..kernels.hess_attention import triton_selection as kernels

    def baseline_counts(probs: Tensor, sparse_ratio: float, cdf_threshold: float, cdf_rule: str) -> Tensor:
        at_least = budgets.ratio_count(probs.shape[-1], sparse_ratio)
        return kernels.count_blocks(probs, at_least, cdf_threshold, cdf_rule)

    def select_blocks(probs: Tensor, counts: Tensor) -> BlockSelection:
        counts = counts.int().contiguous()
        return BlockSelection(counts, kernels.select_blocks(probs, counts))

    return Steps(kernels.pool_blocks, baseline_counts, select_blocks, triton_budgets.water_fill)
