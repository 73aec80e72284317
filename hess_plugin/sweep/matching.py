"""The setting at which a method attends to as many blocks as another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ..config import HeSSConfig

TOLERANCE = 0.005  # of density
MAX_ATTEMPTS = 12
_T = TypeVar("_T")


@dataclass(frozen=True)
class Matched(Generic[_T]):
    """What a method does at the density asked for, or as near to it as its settings go."""

    config: Any  # HeSSConfig, the settings of a baseline, None for dense
    density: float  # measured
    attempts: int  # settings that were run
    result: _T


def match_density(
    config: HeSSConfig,
    target: float,
    run: Callable[[HeSSConfig], tuple[float, _T]],
    tolerance: float = TOLERANCE,
) -> Matched[_T]:
    """Change one number of a setting until its measured density is the target's.

    The number is the CDF threshold, or where it is 0 the sparse ratio: both move density in one direction. It
    is bracketed, and found by secants. The setting as given is tried first and mostly enough, since
    allocations spend the baseline's total and differ only by what earlier layers changed; so nothing cheaper
    than whole passes is run on the way.

    A ratio counts whole blocks of a row, so that a short sequence may have no setting within the tolerance;
    then the nearest that was found is taken.

    Args:
        config: where to start.
        target: density, in [0, 1].
        run: the density of a setting, and what came of it.
        tolerance: of density.
    """
    by_threshold = config.cdf_threshold > 0
    # Points are (x, density) with x from 0 (sparse) to 1 (dense); the first ends are bounds, not measured.
    x, sparsest = (
        (config.cdf_threshold, 1 - config.sparse_ratio) if by_threshold else (1 - config.sparse_ratio, 0.0)
    )
    low, high = (0.0, sparsest), (1.0, 1.0)
    before: tuple[float, float] | None = None
    best: Matched[_T] | None = None
    attempts, miss = 0, math.inf
    while best is None or (attempts < MAX_ATTEMPTS and high[0] - low[0] > 1e-4):
        tried = replace(config, cdf_threshold=x) if by_threshold else replace(config, sparse_ratio=1 - x)
        density, result = run(tried)
        attempts += 1
        if best is None or abs(density - target) < abs(best.density - target):
            best = Matched(tried, density, attempts, result)
        if abs(density - target) <= tolerance:
            break
        here = (x, density)
        # The slope between the last two attempts; after the first one that between those to both ends.
        slope = _slope(before, here) if before else math.sqrt(_slope(low, here) * _slope(here, high))
        low, high = (here, high) if density < target else (low, here)
        step = (target - density) / slope if slope > 0 else math.copysign(1, target - density)
        margin = 0.02 * (high[0] - low[0])
        x, before = min(max(x + step, low[0] + margin), high[0] - margin), here
        if attempts > 2 and abs(density - target) > miss / 2:  # secants creep where density is flat
            x = (low[0] + high[0]) / 2
        miss = abs(density - target)
    return replace(best, attempts=attempts)


def _slope(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Of density over x, never negative; 0 where it cannot be told."""
    rise, run = second[1] - first[1], second[0] - first[0]
    return max(rise / run, 0.0) if run else 0.0
