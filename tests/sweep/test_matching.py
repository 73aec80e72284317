"""Density matching on functions whose inverse is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from hess_plugin.config import HeSSConfig
from hess_plugin.sweep.matching import MAX_ATTEMPTS, match_density

SMOOTH = HeSSConfig(sparse_ratio=0.8, cdf_threshold=0.4)
RATIO = HeSSConfig(sparse_ratio=0.5, cdf_threshold=0.0)


def watched(density: Callable[[HeSSConfig], float]) -> tuple[Callable, list[HeSSConfig]]:
    """A run whose result is the setting itself, and the settings that were run."""
    tried: list[HeSSConfig] = []

    def run(config: HeSSConfig) -> tuple[float, HeSSConfig]:
        tried.append(config)
        return density(config), config

    return run, tried


def of_threshold(config: HeSSConfig) -> float:
    """Flat at the ratio's share, then steep, as block maps are."""
    return max(1 - config.sparse_ratio, config.cdf_threshold**4)


@pytest.mark.parametrize("target", [0.21, 0.24, 0.3, 0.55, 0.8, 0.97])
def test_threshold(target: float) -> None:
    run, tried = watched(of_threshold)
    matched = match_density(SMOOTH, target, run)
    assert abs(matched.density - target) <= 0.005
    assert matched.density == of_threshold(matched.config) == of_threshold(matched.result)
    assert matched.config.sparse_ratio == 0.8
    assert matched.attempts == len(tried) <= 10
    assert tried[0] == SMOOTH


@pytest.mark.parametrize("target", [0.06, 0.3, 0.5, 0.9])
def test_ratio(target: float) -> None:
    run, _ = watched(lambda config: 0.9 * (1 - config.sparse_ratio))
    assert match_density(RATIO, 0.9 * target, run).density == pytest.approx(0.9 * target, abs=0.005)


def test_nothing_is_tried_twice_where_the_setting_fits() -> None:
    run, tried = watched(of_threshold)
    matched = match_density(SMOOTH, 0.203, run)
    assert (matched.attempts, matched.config, len(tried)) == (1, SMOOTH, 1)


def test_steps_that_are_too_coarse_give_the_nearest() -> None:
    run, tried = watched(lambda config: math.floor(7 * (1 - config.sparse_ratio) + 1e-9) / 7)
    matched = match_density(RATIO, 0.5, run)
    assert matched.density in (3 / 7, 4 / 7)
    assert len(tried) <= MAX_ATTEMPTS
    exact = match_density(RATIO, 2 / 7, run)
    assert exact.density == 2 / 7


def test_a_target_out_of_reach_ends() -> None:
    run, tried = watched(of_threshold)
    assert match_density(SMOOTH, 0.1, run).density == pytest.approx(0.2)
    assert len(tried) <= MAX_ATTEMPTS
