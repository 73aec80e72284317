"""The setting at which a method attends to as many blocks as another."""

from __future__ import annotations

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

    config: HeSSConfig
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
    is bracketed and interpolated. The setting as given is tried first, since allocations spend the baseline's
    total and differ only by what earlier layers changed. Whole passes are run, because one more of a part
    costs as much as it saves for the two attempts that are usually enough.

    A ratio counts whole blocks of a row, so that a short sequence may have no setting within the tolerance;
    then the nearest that was found is taken.

    Args:
        config: where to start.
        target: density, in [0, 1].
        run: the density of a setting, and what came of it.
        tolerance: of density.
    """
    name, toward_dense = ("cdf_threshold", 1.0) if config.cdf_threshold > 0 else ("sparse_ratio", 0.0)
    # Ends as (value of the field, density), the sparse one first; these are bounds, not measured.
    low = (1 - toward_dense, 1 - config.sparse_ratio if toward_dense else 0.0)
    high = (toward_dense, 1.0)
    best: Matched[_T] | None = None
    value, attempts = getattr(config, name), 0
    while best is None or (attempts < MAX_ATTEMPTS and abs(high[0] - low[0]) > 1e-4):
        changed: dict[str, Any] = {name: value}
        tried = replace(config, **changed)
        density, result = run(tried)
        attempts += 1
        if best is None or abs(density - target) < abs(best.density - target):
            best = Matched(tried, density, attempts, result)
        if abs(density - target) <= tolerance:
            break
        low, high = ((value, density), high) if density < target else (low, (value, density))
        span = high[1] - low[1]
        share = min(max((target - low[1]) / span if span > 0 else 0.5, 0.1), 0.9)
        value = low[0] + share * (high[0] - low[0])
    return replace(best, attempts=attempts)
