"""Intervals and p values against closed forms and independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from hess_plugin.report.statistics import EXACT_UP_TO, estimate, p_value

RANDOM = np.random.default_rng(0)


def test_interval_agrees_with_scipy() -> None:
    values = RANDOM.normal(3.0, 1.0, 60)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(200):
        found = estimate(np.random.default_rng(trial).normal(0, 1, 40))
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_groups_count_alike_whatever_their_size() -> None:
    values, groups = [1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"]
    found = estimate(values, groups)
    assert found == (3.0, 3.0, 3.0)  # each group drawn from itself has no spread
    assert estimate(values).mean == 2.0


def test_one_scene_has_no_interval() -> None:
    found = estimate([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("count", [1, 2, 5, 9, EXACT_UP_TO])
def test_exact_p_agrees_with_scipy(count: int) -> None:
    differences = RANDOM.normal(0.4, 1.0, count)
    expected = (
        scipy.stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        ).pvalue
        if count > 1
        else 1.0
    )
    assert p_value(differences) == pytest.approx(expected)


def test_drawn_p_agrees_with_the_t_test() -> None:
    differences = RANDOM.normal(0.25, 1.0, 80)
    assert p_value(differences) == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


def test_p_is_even_under_the_hypothesis() -> None:
    found = [p_value(np.random.default_rng(trial).normal(0, 1, 10)) for trial in range(200)]
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.1
    assert p_value([3.0] * 30) == pytest.approx(1 / 10_001)


@pytest.mark.parametrize("call", [estimate, p_value])
@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], None, "at least one"),
        ([1.0, math.nan], None, "finite"),
        ([1.0, 2.0], ["a"], "2 values but 1 groups"),
    ],
)
def test_bad_input(call, values: list, groups: list | None, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(values, groups)
