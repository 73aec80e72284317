"""Means over scenes with intervals, and whether a paired difference may be chance.

Scenes may be in groups (CO3D's categories): then a mean is that of the groups' means, and scenes are drawn
from their own group.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
NUM_FLIPS = 10_000
EXACT_UP_TO = 12  # scenes: all signs are tried instead of some drawn
LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over scenes with its 95 % percentile bootstrap interval; the interval is NaN for one scene."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0) -> Estimate:
    """Mean and interval of values [N], one per scene.

    Args:
        values: finite, at least one.
        groups: of each scene; None: one group.
        seed: of the draws.

    Raises:
        ValueError: no value, one that is not finite, or not one group per value.

    Example:
        >>> estimate([1.0, 1.0, 1.0])
        Estimate(mean=1.0, low=1.0, high=1.0)
    """
    array, names = _checked(values, groups)
    mean = float(_weights(names) @ array)
    if len(array) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    low, high = np.quantile(_resamples(names, seed) @ array, ends)
    return Estimate(mean, float(low), float(high))


def p_value(differences: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0) -> float:
    """Two-sided p of paired differences [N] under the hypothesis that each could as well be the other way.

    A sign-flip (randomisation) test of the mean: the share of assignments of signs whose mean is at least as
    far from 0. All 2^N are tried up to N = 12, else 10,000 are drawn and the given one counts among them, so
    that p is never 0.

    Args:
        differences: finite, at least one.
        groups: as of `estimate`.
        seed: of the draws.

    Example:
        >>> p_value([1.0, 2.0, 3.0])  # 2 of 8 assignments are as extreme
        0.25
    """
    array, names = _checked(differences, groups)
    weighted = _weights(names) * array
    signs = _signs(len(array), seed)
    extra = int(len(array) > EXACT_UP_TO)  # the given assignment, among those drawn
    rounding = 1e-12 * np.abs(weighted).sum()
    as_extreme = int((np.abs(signs @ weighted) >= abs(weighted.sum()) - rounding).sum())
    return (as_extreme + extra) / (len(signs) + extra)


def _checked(values: Sequence[float], groups: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    array = np.asarray(values, dtype=np.float64)
    names = ("",) * len(array) if groups is None else tuple(groups)
    if len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("values must be finite numbers, at least one.")
    if len(names) != len(array):
        raise ValueError(f"there are {len(array)} values but {len(names)} groups.")
    return array, names


def _weights(groups: tuple[str, ...]) -> np.ndarray:
    """Of each scene in the mean of the groups' means, [N], summing to 1."""
    sizes = {name: groups.count(name) for name in dict.fromkeys(groups)}
    return np.array([1 / (len(sizes) * sizes[group]) for group in groups])


# Tables ask for hundreds of cells over the same scenes, so draws are kept.
@functools.lru_cache(maxsize=8)
def _resamples(groups: tuple[str, ...], seed: int) -> np.ndarray:
    """Weight of each scene in each resample, [R, N], rows summing to 1."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((NUM_RESAMPLES, len(groups)))
    names = list(dict.fromkeys(groups))
    for name in names:
        members = np.array([index for index, group in enumerate(groups) if group == name])
        drawn = members[generator.integers(len(members), size=(NUM_RESAMPLES, len(members)))]
        np.add.at(weights, (np.arange(NUM_RESAMPLES)[:, None], drawn), 1 / (len(names) * len(members)))
    return weights


@functools.lru_cache(maxsize=8)
def _signs(count: int, seed: int) -> np.ndarray:
    """Assignments of signs, [F, N]: all there are, or some drawn."""
    if count <= EXACT_UP_TO:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    return np.random.default_rng(seed).choice((-1.0, 1.0), size=(NUM_FLIPS, count))
