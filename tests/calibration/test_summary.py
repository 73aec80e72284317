"""Statistics over calibration scenes, by hand on a few scenes and against loops on random ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from hess_plugin.calibration import summary
from hess_plugin.calibration.summary import (
    _rank_correlation,
    bootstrap_interval,
    format_summary,
    rank_stability,
)
from hess_plugin.scores import HeadScores, ScoresInfo


def scores_of(camera: Any, points: Any = None, **changes: Any) -> HeadScores:
    """Scores with these traces [N, L, H], by default the same for both errors, at λ = 0.5."""
    camera = torch.as_tensor(camera, dtype=torch.float64)
    points = camera if points is None else torch.as_tensor(points, dtype=torch.float64)
    num_scenes, num_layers, num_heads = camera.shape
    values: dict[str, Any] = {
        "backbone": "vggt",
        "num_layers": num_layers,
        "num_heads": num_heads,
        "head_dim": 8,
        "dataset": "toy",
        "scene_ids": tuple(f"scene-{i}" for i in range(num_scenes)),
        "view_ids": (("0", "1"),) * num_scenes,
        "num_views": 2,
        "seed": 0,
        "camera_weight": 0.5,
    }
    return HeadScores({"camera": camera, "points": points}, ScoresInfo(**(values | changes)))


def random_traces(num_scenes: int, num_layers: int, num_heads: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_scenes, num_layers, num_heads, generator=generator, dtype=torch.float64) ** 3


class TestBootstrap:
    TWO = scores_of([[[1.0, 3.0]], [[3.0, 1.0]]])

    @pytest.mark.parametrize(
        ("level", "low", "high"), [(0.95, [0.25, 0.25], [0.75, 0.75]), (0.3, [0.5, 0.5], [0.5, 0.5])]
    )
    def test_two_scenes_by_hand(self, level: float, low: list[float], high: list[float]) -> None:
        """A quarter of the resamples is the first scene twice (1/4, 3/4), a quarter the second, half both."""
        found = bootstrap_interval(self.TWO, level)
        expected = (torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))
        torch.testing.assert_close(found, expected)

    def test_equal_scenes_leave_no_doubt(self) -> None:
        scores = scores_of(random_traces(1, 3, 4).expand(5, 3, 4))
        for end in bootstrap_interval(scores):
            torch.testing.assert_close(end, scores.weights())

    def test_equals_a_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Scores of the drawn scenes themselves, one resample after the other; λ is the recommended one."""
        monkeypatch.setattr(summary, "NUM_RESAMPLES", 200)
        camera, points = random_traces(4, 2, 3), random_traces(4, 2, 3, seed=1)
        drawn = torch.randint(4, (200, 4), generator=torch.Generator().manual_seed(7))
        resampled = [scores_of(camera[i], points[i], camera_weight=0.2).weights() for i in drawn]
        expected = torch.quantile(
            torch.stack(resampled), torch.tensor([0.1, 0.9], dtype=torch.float64), dim=0
        )
        low, high = bootstrap_interval(scores_of(camera, points, camera_weight=0.2), level=0.8, seed=7)
        torch.testing.assert_close(low, expected[0])
        torch.testing.assert_close(high, expected[1])

    def test_seed_decides(self) -> None:
        scores = scores_of(random_traces(6, 2, 3))
        first, again, other = (bootstrap_interval(scores, seed=seed)[0] for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_more_scenes_narrow_it(self) -> None:
        few, many = (bootstrap_interval(scores_of(random_traces(n, 4, 6))) for n in (5, 80))
        assert (many[1] - many[0]).mean() < 0.5 * (few[1] - few[0]).mean()

    def test_resamples_without_sensitivity_are_left_out(self) -> None:
        """The second scene says nothing: drawn twice there are no weights, else they are the first's."""
        scores = scores_of([[[1.0, 3.0]], [[0.0, 0.0]]])
        for end in bootstrap_interval(scores):
            torch.testing.assert_close(end, scores.weights())

    @pytest.mark.parametrize("level", [0.0, 1.0, -0.5, float("nan")])
    def test_bad_level(self, level: float) -> None:
        with pytest.raises(ValueError, match="level must be above 0 and below 1"):
            bootstrap_interval(self.TWO, level)

    def test_one_scene(self) -> None:
        with pytest.raises(ValueError, match="needs at least two"):
            bootstrap_interval(scores_of([[[1.0, 3.0]]]))


class TestRankCorrelation:
    @pytest.mark.parametrize(
        ("first", "second", "expected"),
        [
            ([1.0, 2, 3], [10.0, 20, 90], 1.0),
            ([1.0, 2, 3], [3.0, 2, 1], -1.0),
            ([1.0, 2, 3], [1.0, 3, 2], 0.5),
            ([1.0, 1, 2], [1.0, 2, 3], 0.75**0.5),  # ranks (1.5, 1.5, 3)
            ([1.0, 1, 1], [1.0, 2, 3], 0.0),
            ([float("nan")] * 3, [1.0, 2, 3], 0.0),
        ],
    )
    def test_by_hand(self, first: list[float], second: list[float], expected: float) -> None:
        found = _rank_correlation(torch.tensor(first), torch.tensor(second))
        assert found.item() == pytest.approx(expected)

    def test_equals_scipy_also_with_equal_values(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randint(0, 6, (2, 20, 9), generator=generator).double()
        expected = [spearmanr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
        assert _rank_correlation(a, b).tolist() == pytest.approx(expected)


class TestRankStability:
    def test_one_order_in_all_scenes(self) -> None:
        """Scenes of any magnitude that agree on the order of heads: perfect for every n."""
        scale = torch.tensor([1.0, 1e-6, 50.0, 3.0, 0.1, 7.0]).view(6, 1, 1)
        scores = scores_of(scale * torch.tensor([[1.0, 5.0, 2.0], [9.0, 3.0, 4.0]]))
        assert rank_stability(scores, [1, 2, 3]) == pytest.approx({1: 1.0, 2: 1.0, 3: 1.0})

    def test_sets_are_disjoint(self) -> None:
        """Two scenes of opposite order: any overlap would raise the figure above -1."""
        assert rank_stability(scores_of([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]]), [1]) == {1: -1.0}

    def test_mean_over_layers(self) -> None:
        """Perfect in one layer, opposite in the other."""
        scores = scores_of([[[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]])
        assert rank_stability(scores, [1]) == {1: 0.0}

    def test_n_against_n_others_by_hand(self) -> None:
        """Three scenes agree; a stronger one is of the opposite order, and turns each set that it is in."""
        scores = scores_of([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]], [[90.0, 10.0]]])
        figures = rank_stability(scores, [1, 2])
        assert figures[2] == -1.0
        assert figures[1] == pytest.approx(0.0, abs=0.3)  # the stronger one is in half of all pairs

    def test_grows_with_the_number_of_scenes(self) -> None:
        noise = random_traces(60, 5, 8)
        figures = list(rank_stability(scores_of(noise + random_traces(1, 5, 8, seed=3)), [1, 5, 30]).values())
        assert figures == sorted(figures)
        assert figures[-1] > figures[0] + 0.2

    def test_figure_does_not_depend_on_other_sizes(self) -> None:
        scores = scores_of(random_traces(8, 2, 5))
        assert rank_stability(scores, [3])[3] == rank_stability(scores, range(1, 5))[3]
        assert rank_stability(scores, [3], seed=1) != rank_stability(scores, [3])

    @pytest.mark.parametrize("size", [0, 3, -1])
    def test_bad_size(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"sizes must be from 1 to 2, half of 5 scenes, got {size}"):
            rank_stability(scores_of(random_traces(5, 1, 3)), [size])


class TestFormat:
    def test_heads_that_stand_out(self) -> None:
        """Layer 1: head 2 always on top, head 1 never; layer 2: the scenes disagree."""
        scene = torch.tensor([[1.0, 8.0, 3.0], [1.0, 2.0, 1.0]])
        other = torch.tensor([[1.0, 7.0, 4.0], [2.0, 1.0, 1.0]])
        lines = format_summary(scores_of(torch.stack([scene, other] * 4))).splitlines()
        assert lines[0] == "8 scenes x 2 views of toy, none skipped"
        rows = [line.split() for line in lines if line.startswith(("1 ", "2 "))]
        assert rows[0][:3] == ["1", "2:", "0.62"]  # 7.5 of 12
        assert rows[0][-3:] == ["2", "2", "0"]  # above: head 2; below: two heads; none unclear
        assert rows[1][-3:] == ["none", "1", "2"]  # the third head has a quarter in every scene
        assert "n others, mean over layers: 1: " in lines[-2]

    @pytest.mark.parametrize(
        ("traces", "verdict"),
        [
            ([[[1.0, 2.0, 3.0]]] * 4, "1 scene would have been enough (at least 0.9)."),
            (
                [[[1.0, 2.0]], [[1.0, 2.0]], [[2.0, 1.0]], [[2.0, 1.0]]],
                "2 are not enough to reach 0.9: another",
            ),
        ],
    )
    def test_verdict(self, traces: list, verdict: str) -> None:
        assert format_summary(scores_of(traces)).splitlines()[-1].startswith(verdict)

    def test_least_number_that_is_enough(self) -> None:
        """The number named is the first that reaches the bound."""
        scores = scores_of(random_traces(40, 3, 8) + 0.1 * torch.arange(8.0))
        stability = rank_stability(scores, range(1, 21))
        enough = min(n for n, figure in stability.items() if figure >= 0.9)
        assert 1 < enough < 20
        assert format_summary(scores).splitlines()[-1].startswith(f"{enough} scenes would have been enough")

    def test_scene_that_outweighs_the_others(self) -> None:
        text = format_summary(scores_of([[[1.0, 2.0]], [[30.0, 60.0]], [[3.0, 4.0]]], [[[1.0, 1.0]]] * 3))
        assert "comes from one scene: camera 90% (scene-1), points 33% (scene-0)" in text

    def test_skipped_scenes_by_reason(self) -> None:
        reasons = {"b": "has 3 views", "a": "NaN pose", "c": "has 3 views"}
        text = format_summary(scores_of(random_traces(4, 2, 3), skipped=reasons))
        assert text.startswith(
            "4 scenes x 2 views of toy, 3 skipped:\n  2 x has 3 views (b)\n  1 x NaN pose (a)\n"
        )

    def test_many_reasons_are_cut(self) -> None:
        reasons = {f"scene {i}": f"frame {i} is truncated" for i in range(14)}
        text = format_summary(scores_of(random_traces(4, 2, 3), skipped=reasons))
        assert "14 skipped" in text
        assert text.count("is truncated") == 10
        assert "and 4 more reasons, all in hess_config.json" in text

    def test_one_scene(self) -> None:
        text = format_summary(scores_of([[[1.0, 3.0]]]))
        assert (
            text.splitlines()[1]
            == "One scene says nothing about other scenes: no intervals, no rank stability."
        )

    def test_layer_without_sensitivity_is_refused(self) -> None:
        with pytest.raises(ValueError, match="global layer 0 is zero for every head"):
            format_summary(scores_of([[[0.0, 0.0]]] * 3))
