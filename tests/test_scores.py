"""Head scores: their weights, and files that are read completely or refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hess_plugin.scores import CONFIG_FILE, FORMAT_VERSION, SCORES_FILE, HeadScores, ScoresInfo

FIT = {"backbone": "vggt", "num_layers": 2, "num_heads": 3, "head_dim": 16}


def make_info(**changes: Any) -> ScoresInfo:
    values: dict[str, Any] = {
        **FIT,
        "dataset": "toy",
        "scene_ids": ("a", "b"),
        "num_views": 4,
        "seed": 0,
        "camera_weight": 0.25,
        "calibration": {"inlier_radius": 0.2236},
        "base_model": "facebook/VGGT-1B",
        "base_revision": "0123abc",
        "weights_sha256": "f" * 64,
    }
    return ScoresInfo(**(values | changes))


def make_scores(**changes: Any) -> HeadScores:
    generator = torch.Generator().manual_seed(0)
    traces = {
        name: torch.rand(2, 2, 3, generator=generator, dtype=torch.float64) for name in ("camera", "points")
    }
    return HeadScores(traces, make_info(**changes))


def traces_of(camera: list, points: list) -> dict[str, Tensor]:
    return {"camera": torch.tensor(camera), "points": torch.tensor(points)}


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
            make_scores().check_fit(**FIT, weights_sha256="f" * 64)
            make_scores().check_fit(**FIT, weights_sha256=None)
            make_scores(weights_sha256=None).check_fit(**FIT, weights_sha256="0" * 64)

    @pytest.mark.parametrize(
        "change", [{"backbone": "pi3"}, {"num_layers": 24}, {"num_heads": 16}, {"head_dim": 64}]
    )
    def test_refused_with_both_sides(self, change: dict[str, Any]) -> None:
        given = FIT | change
        theirs = "{backbone} with {num_layers} layers x {num_heads} heads of {head_dim}".format(**given)
        with pytest.raises(ValueError, match="scores are for vggt with 2 layers x 3 heads of 16") as error:
            make_scores().check_fit(**given, weights_sha256=None)
        assert f"this model is {theirs}" in str(error.value)
        assert "facebook/VGGT-1B" in str(error.value)

    def test_other_weights_warn(self) -> None:
        with pytest.warns(UserWarning, match=r"weights 000000000000\) .* weights ffffffffffff\); calibrate"):
            make_scores().check_fit(**FIT, weights_sha256="0" * 64)


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        scores = make_scores()
        scores.save(tmp_path / "new" / "folder")
        loaded = HeadScores.load(tmp_path / "new" / "folder")
        assert loaded.info == scores.info
        for error, trace in scores.scene_traces.items():
            assert torch.equal(loaded.scene_traces[error], trace)
        assert torch.equal(loaded.weights(), scores.weights())
        assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {CONFIG_FILE, SCORES_FILE}

    def test_names_in_the_files(self, tmp_path: Path) -> None:
        scores = make_scores()
        scores.save(tmp_path)
        config = json.loads((tmp_path / CONFIG_FILE).read_text())
        assert set(config) == {field.name for field in dataclasses.fields(ScoresInfo)}
        assert config["versions"]["torch"] == str(torch.__version__)
        with safe_open(tmp_path / SCORES_FILE, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        assert shapes == {
            "fisher_trace.camera": [2, 3],
            "fisher_trace.points": [2, 3],
            "scene_trace.camera": [2, 2, 3],
            "scene_trace.points": [2, 2, 3],
        }
        assert metadata["format"] == "pt"
        assert json.loads(metadata[CONFIG_FILE]) == config

    def test_a_failed_save_leaves_the_old_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_scores().save(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def fail(source: object, target: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            make_scores(seed=1).save(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / CONFIG_FILE).read_text()) | changes
        kept = {key: value for key, value in values.items() if value != "absent"}
        (folder / CONFIG_FILE).write_text(json.dumps(kept))

    return edit


def edit_tensors(
    change: Callable[[dict[str, Tensor]], None], metadata: bool = True
) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / SCORES_FILE
        tensors = safetensors.torch.load_file(path)
        with safe_open(path, "pt") as file:
            written_with = file.metadata()
        change(tensors)
        safetensors.torch.save_file(tensors, path, written_with if metadata else None)

    return edit


def nothing(tensors: dict[str, Tensor]) -> None:
    pass


def cut(folder: Path) -> None:
    path = folder / SCORES_FILE
    path.write_bytes(path.read_bytes()[:-8])


def other_calibration(folder: Path) -> None:
    make_scores(seed=5).save(folder / "other")
    (folder / SCORES_FILE).write_bytes((folder / "other" / SCORES_FILE).read_bytes())


NAN = torch.full((2, 2, 3), float("nan"), dtype=torch.float64)
DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no config": (lambda folder: (folder / CONFIG_FILE).unlink(), CONFIG_FILE, "no such file"),
    "no tensors": (lambda folder: (folder / SCORES_FILE).unlink(), SCORES_FILE, "no such file"),
    "unknown key": (edit_config(tau=0.9), CONFIG_FILE, "unknown key 'tau' in ScoresInfo; known: backbone"),
    "missing key": (edit_config(dataset="absent"), CONFIG_FILE, "lacks the key dataset"),
    "newer": (
        edit_config(format_version=FORMAT_VERSION + 1, new_field=1),
        CONFIG_FILE,
        f"format_version is {FORMAT_VERSION + 1}, this version reads up to {FORMAT_VERSION}",
    ),
    "version is text": (edit_config(format_version="1"), CONFIG_FILE, "format_version must be an integer"),
    "not JSON": (lambda folder: (folder / CONFIG_FILE).write_text("{"), CONFIG_FILE, "Expecting property"),
    "not text": (lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff\xfe"), CONFIG_FILE, "utf-8"),
    "a list": (lambda folder: (folder / CONFIG_FILE).write_text("[1]"), CONFIG_FILE, "JSON object"),
    "another L": (edit_config(num_layers=3), SCORES_FILE, "another hess_config.json"),
    "cut short": (cut, SCORES_FILE, "incomplete"),
    "empty": (lambda folder: (folder / SCORES_FILE).write_bytes(b""), SCORES_FILE, "header"),
    "mixed pair": (other_calibration, SCORES_FILE, "another hess_config.json"),
    "no metadata": (edit_tensors(nothing, metadata=False), SCORES_FILE, "metadata lack hess_config.json"),
    "missing tensor": (
        edit_tensors(lambda t: t.pop("scene_trace.points")),
        SCORES_FILE,
        "must hold the tensors",
    ),
    "unknown tensor": (
        edit_tensors(lambda t: t.update(extra=torch.ones(1))),
        SCORES_FILE,
        "must hold the tensors .* got extra",
    ),
    "float32": (
        edit_tensors(lambda t: t.update({"fisher_trace.camera": t["fisher_trace.camera"].float()})),
        SCORES_FILE,
        "fisher_trace.camera must be float64, got float32",
    ),
    "shape": (
        edit_tensors(lambda t: t.update({"scene_trace.camera": t["scene_trace.camera"][..., :2].clone()})),
        SCORES_FILE,
        r"scene_trace.camera must be .* got \[2, 2, 2\]",
    ),
    "NaN": (
        edit_tensors(lambda t: t.update({"scene_trace.camera": NAN})),
        SCORES_FILE,
        "scene_trace.camera must be finite and >= 0, got nan",
    ),
    "other mean": (
        edit_tensors(lambda t: t["fisher_trace.points"].mul_(1.001)),
        SCORES_FILE,
        "fisher_trace.points is not the mean of scene_trace.points",
    ),
    "mean's shape": (
        edit_tensors(lambda t: t.update({"fisher_trace.points": t["fisher_trace.points"][:1].clone()})),
        SCORES_FILE,
        "fisher_trace.points is not the mean",
    ),
}


class TestLoadRefuses:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_names_file_and_field(self, tmp_path: Path, damage: str) -> None:
        make_scores().save(tmp_path)
        edit, file, message = DAMAGES[damage]
        edit(tmp_path)
        with pytest.raises(ValueError, match=message) as error:
            HeadScores.load(tmp_path)
        assert str(error.value).startswith(f"{tmp_path / file}: ")
        assert "\n" not in str(error.value)
