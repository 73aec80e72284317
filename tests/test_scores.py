"""Head scores: their weights, what they refuse, and the models that they fit."""

from __future__ import annotations

import warnings
from math import e, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_scores import FIT, make_info, make_scores, traces_of

from hess_plugin.config import NORMALIZATIONS, PROJECTIONS
from hess_plugin.scores import (
    HeadScores,
    head_weights,
)

LOG_HALF = log(1.5) / (log(1.5) + log(2.5))


class TestWeights:
    INFO = make_info(num_layers=1, num_heads=2)
    # means over scenes: camera (1, 3), points (6, 2)
    SCORES = HeadScores(traces_of([[[0.0, 2.0]], [[2.0, 4.0]]], [[[9.0, 3.0]], [[3.0, 1.0]]]), INFO)

    @pytest.mark.parametrize(
        ("camera_weight", "expected"),
        [(1, [0.25, 0.75]), (0, [0.75, 0.25]), (0.5, [0.5, 0.5]), (None, [0.625, 0.375])],
    )
    def test_by_hand(self, camera_weight: float | None, expected: list[float]) -> None:
        """Shares (1/4, 3/4) and (3/4, 1/4), mixed; None is the recommended 0.25."""
        assert self.SCORES.fisher_trace["camera"].tolist() == [[1, 3]]
        weights = self.SCORES.weights(camera_weight)
        assert weights.dtype == torch.float64
        torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float64))

    @pytest.mark.parametrize(
        ("normalization", "camera", "points"),
        [
            ("sum", [1 / 4, 3 / 4], [6 / 8, 2 / 8]),
            ("softmax", [1 / (1 + e), e / (1 + e)], [e / (1 + e), 1 / (1 + e)]),  # of (1/2, 3/2), (3/2, 1/2)
            ("log", [LOG_HALF, 1 - LOG_HALF], [1 - LOG_HALF, LOG_HALF]),  # of the same
        ],
    )
    def test_normalizations_by_hand(
        self, normalization: Any, camera: list[float], points: list[float]
    ) -> None:
        """In units of the layer's mean, the traces are (1/2, 3/2) and (3/2, 1/2); then mixed at λ = 1/4."""
        mixed = [0.25 * c + 0.75 * p for c, p in zip(camera, points, strict=True)]
        for share, expected in ((1, camera), (0, points), (None, mixed)):
            weights = self.SCORES.weights(share, normalization=normalization)
            torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float64))

    def test_linear_by_hand(self) -> None:
        """Raw traces (1, 3) and (6, 2) at λ = 1/4: (4.75, 2.25) of 7."""
        expected = torch.tensor([[4.75 / 7, 2.25 / 7]], dtype=torch.float64)
        torch.testing.assert_close(self.SCORES.weights(normalization="linear"), expected)

    @pytest.mark.parametrize("normalization", NORMALIZATIONS)
    def test_laws_of_every_normalization(self, normalization: Any) -> None:
        """Shares of a layer, in the order of the traces where there is one error, whatever the unit."""
        generator = torch.Generator().manual_seed(1)
        camera, points = torch.rand(2, 5, 4, 7, generator=generator, dtype=torch.float64) ** 3
        camera[..., 2] = 0
        weights = head_weights(camera, points, 0.3, normalization)
        assert weights.shape == (5, 4, 7)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 4, dtype=torch.float64))
        alone = head_weights(camera, points, 1.0, normalization)
        assert torch.equal(alone.argsort(dim=-1, stable=True), camera.argsort(dim=-1, stable=True))
        even = head_weights(torch.full_like(camera, 1e-9), torch.full_like(points, 1e9), 0.3, normalization)
        torch.testing.assert_close(even, torch.full_like(even, 1 / 7))
        common = head_weights(1e-12 * camera, 1e-12 * points, 0.3, normalization)
        torch.testing.assert_close(common, weights)
        single = head_weights(1e12 * camera, points, 0.3, normalization)
        assert torch.allclose(single, weights) == (normalization != "linear")

    def test_log_flattens_and_softmax_lets_one_head_dominate(self) -> None:
        """16 heads, one with half of the sensitivity: 8 times the mean, the others 8/15 of it."""
        traces = torch.tensor([[15.0] + [1.0] * 15], dtype=torch.float64)
        shares = {n: float(head_weights(traces, traces, 0.5, n)[0, 0]) for n in ("log", "sum", "softmax")}
        expected = {
            "log": log(9) / (log(9) + 15 * log(23 / 15)),
            "sum": 0.5,
            "softmax": 1 / (1 + 15 * e ** (8 / 15 - 8)),
        }
        assert shares == pytest.approx(expected)
        assert shares["log"] < shares["sum"] < shares["softmax"]

    @pytest.mark.parametrize("projection", PROJECTIONS)
    def test_projection_chooses_the_traces(self, projection: Any) -> None:
        scores = make_scores(projections=PROJECTIONS)
        camera, points = (
            scores.scene_traces[name if projection == "query" else f"{name}.{projection}"].mean(0)
            for name in ("camera", "points")
        )
        for normalization in NORMALIZATIONS:
            expected = head_weights(camera, points, 0.25, normalization)
            found = scores.weights(projection=projection, normalization=normalization)
            torch.testing.assert_close(found, expected)

    def test_projection_that_was_not_calibrated(self) -> None:
        message = r"no traces of the key .* have query, value\. .*projections=\('query', 'key'\)"
        with pytest.raises(ValueError, match=message):
            make_scores(projections=("query", "value")).weights(projection="key")

    def test_unknown_normalization(self) -> None:
        with pytest.raises(ValueError, match=r"normalization must be one of .*'log'\), got 'max'"):
            self.SCORES.weights(normalization="max")  # type: ignore[arg-type]

    def test_rows_sum_to_one_and_scale_of_a_layer_is_nothing(self) -> None:
        scores = make_scores()
        torch.testing.assert_close(scores.weights().sum(1), torch.ones(2, dtype=torch.float64))
        scale = torch.tensor([[1e-30], [1e12]], dtype=torch.float64)
        scaled = {name: trace * scale for name, trace in scores.scene_traces.items()}
        torch.testing.assert_close(HeadScores(scaled, scores.info).weights(), scores.weights())

    def test_permuting_heads_permutes_weights(self) -> None:
        scores, order = make_scores(), [2, 0, 1]
        permuted = HeadScores({n: t[..., order] for n, t in scores.scene_traces.items()}, scores.info)
        assert torch.equal(permuted.weights(), scores.weights()[:, order])

    def test_float32_traces_are_kept_in_float64(self) -> None:
        assert {trace.dtype for trace in self.SCORES.scene_traces.values()} == {torch.float64}

    @pytest.mark.parametrize("camera_weight", [-0.1, 1.5, float("nan")])
    def test_camera_weight_outside(self, camera_weight: float) -> None:
        with pytest.raises(ValueError, match=r"camera_weight must be in \[0, 1\]"):
            self.SCORES.weights(camera_weight)

    def test_a_layer_without_sensitivity(self) -> None:
        scores = make_scores()
        scores.scene_traces["camera"][:, 1] = 0
        with pytest.raises(
            ValueError, match=r"fisher_trace\.camera of global layer 1 is zero for every head"
        ):
            scores.weights()
        points_only = scores.weights(camera_weight=0)
        assert points_only.isfinite().all()


class TestConstruction:
    @pytest.mark.parametrize(
        ("traces", "message"),
        [
            ({"camera": torch.ones(2, 2, 3)}, "scene_traces must have"),
            (traces_of([], []) | {"camera.key": torch.ones(2, 2, 3)}, r"must have .* got .*camera\.key"),
            (
                traces_of([[[1.0] * 3] * 2] * 2, [[[1.0] * 4] * 2] * 2),
                r"scene_trace\.points must be .* \[2, 2, 3\]",
            ),
            (
                traces_of([[[1.0] * 3] * 2], [[[1.0] * 3] * 2]),
                r"scene_trace\.camera must be .* got \[1, 2, 3\]",
            ),
        ],
    )
    def test_bad_shape(self, traces: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HeadScores(traces, make_info())

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
    def test_impossible_trace_names_scene_layer_and_head(self, value: float) -> None:
        traces = dict(make_scores().scene_traces)
        traces["points"] = traces["points"].clone()
        traces["points"][1, 0, 2] = value
        with pytest.raises(ValueError, match=rf"got {value}, in layer 0, head 2, scene 'b'"):
            HeadScores(traces, make_info())

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("backbone", ""),
            ("num_layers", 0),
            ("num_heads", 2.5),
            ("head_dim", True),
            ("scene_ids", ()),
            ("scene_ids", "ab"),
            ("scene_ids", ("a", "a")),
            ("scene_ids", ("a", 1)),
            ("seed", -1),
            ("camera_weight", 1.01),
            ("camera_weight", None),
            ("calibration", None),
            ("base_model", 3),
            ("view_ids", (("1", "2", "3", "4"),)),
            ("view_ids", (("1", "2", "3"), ("1", "2", "3"))),
            ("view_ids", (("1", "2", "3", "3"), ("1", "2", "3", "4"))),
            ("view_ids", "ab"),
            ("projections", ("key",)),
            ("projections", ["query", "output"]),
            ("dataset_settings", {"root": Path("/data")}),
            ("dataset_settings", {"scale": float("nan")}),
            ("skipped", {"c": 3}),
            ("skipped", ["c"]),
            ("dataset", None),
        ],
    )
    def test_impossible_info(self, field: str, value: object) -> None:
        with pytest.raises(ValueError, match=field):
            make_info(**{field: value})


class TestFit:
    def test_fits(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make_scores().info.check_fit(**FIT, weights_sha256="f" * 64)
            make_scores().info.check_fit(**FIT, weights_sha256=None)
            make_scores(weights_sha256=None).info.check_fit(**FIT, weights_sha256="0" * 64)

    @pytest.mark.parametrize(
        "change", [{"backbone": "pi3"}, {"num_layers": 24}, {"num_heads": 16}, {"head_dim": 64}]
    )
    def test_refused_with_both_sides(self, change: dict[str, Any]) -> None:
        given = FIT | change
        theirs = "{backbone} with {num_layers} layers x {num_heads} heads of {head_dim}".format(**given)
        with pytest.raises(ValueError, match="scores are for vggt with 2 layers x 3 heads of 16") as error:
            make_scores().info.check_fit(**given, weights_sha256=None)
        assert f"this model is {theirs}" in str(error.value)
        assert "facebook/VGGT-1B" in str(error.value)

    def test_other_weights_warn(self) -> None:
        with pytest.warns(UserWarning, match=r"weights 000000000000\) .* weights ffffffffffff\); calibrate"):
            make_scores().info.check_fit(**FIT, weights_sha256="0" * 64)
