"""Head scores: their weights, and files that are read completely or refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from math import e, log
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hess_plugin.config import NORMALIZATIONS, PROJECTIONS
from hess_plugin.scores import (
    CONFIG_FILE,
    FORMAT_VERSION,
    SCORES_FILE,
    HeadScores,
    ScoresInfo,
    head_weights,
    trace_names,
)
from hess_plugin.scores_io import traces_sha256, write_sidecar

FIT = {"backbone": "vggt", "num_layers": 2, "num_heads": 3, "head_dim": 16}


def make_info(**changes: Any) -> ScoresInfo:
    values: dict[str, Any] = {
        **FIT,
        "dataset": "toy",
        "scene_ids": ("a", "b"),
        "view_ids": (("1", "2", "3", "4"), ("2", "3", "5", "7")),
        "dataset_settings": {"subset": "fewview_dev", "size": [64, 48]},
        "skipped": {"c": "has 3 views"},
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
    info, generator = make_info(**changes), torch.Generator().manual_seed(0)
    names = trace_names(info.projections)
    return HeadScores({n: torch.rand(2, 2, 3, generator=generator, dtype=torch.float64) for n in names}, info)


def traces_of(camera: list, points: list) -> dict[str, Tensor]:
    return {"camera": torch.tensor(camera), "points": torch.tensor(points)}


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

    def test_equal_scores_are_equal_files(self, tmp_path: Path) -> None:
        """In processes of their own, because libraries draw the order of their maps once per process."""
        make_scores().save(tmp_path / "here")
        code = (
            "import sys; from hess_plugin.scores import HeadScores; "
            "HeadScores.load(sys.argv[1]).save(sys.argv[2])"
        )
        for number in range(3):
            copy = tmp_path / str(number)
            subprocess.run([sys.executable, "-c", code, tmp_path / "here", copy], check=True, timeout=300)
            for name in (CONFIG_FILE, SCORES_FILE):
                assert (copy / name).read_bytes() == (tmp_path / "here" / name).read_bytes()

    def test_order_of_the_given_traces_is_nothing(self, tmp_path: Path) -> None:
        scores = make_scores(projections=PROJECTIONS)
        shuffled = dict(reversed(scores.scene_traces.items()))
        scores.save(tmp_path / "a")
        HeadScores(shuffled, make_info(projections=("value", "query", "key"))).save(tmp_path / "b")
        for name in (CONFIG_FILE, SCORES_FILE):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_all_projections_round_trip(self, tmp_path: Path) -> None:
        scores = make_scores(projections=PROJECTIONS)
        scores.save(tmp_path)
        loaded = HeadScores.load(tmp_path)
        assert loaded.info == scores.info
        assert set(loaded.scene_traces) == {
            f"{e}{p}" for e in ("camera", "points") for p in ("", ".key", ".value")
        }
        for name, trace in scores.scene_traces.items():
            assert torch.equal(loaded.scene_traces[name], trace)

    def test_text_is_one_line_per_field_and_scene(self) -> None:
        info = make_info(dataset="größe", skipped={})
        lines = info.to_json().splitlines()
        assert json.loads(info.to_json()) == json.loads(json.dumps(dataclasses.asdict(info)))
        assert len(lines) == 2 + len(dataclasses.fields(ScoresInfo)) + len(info.scene_ids) + 1
        assert '    ["2", "3", "5", "7"]' in lines
        assert '  "dataset": "größe",' in lines

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
        digest = hashlib.sha256()
        for error in ("camera", "points"):
            digest.update(error.encode() + scores.scene_traces[error].numpy().tobytes())
        assert metadata["traces_sha256"] == digest.hexdigest()

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
    change: Callable[[dict[str, Tensor]], None], **metadata: str | None
) -> Callable[[Path], None]:
    """Rewrite the tensors, and the metadata with these changes; None takes an entry out."""

    def edit(folder: Path) -> None:
        path = folder / SCORES_FILE
        tensors = safetensors.torch.load_file(path)
        with safe_open(path, "pt") as file:
            written_with = file.metadata() | metadata
        change(tensors)
        kept = {key: value for key, value in written_with.items() if value is not None}
        safetensors.torch.save_file(tensors, path, kept)

    return edit


def nothing(tensors: dict[str, Tensor]) -> None:
    pass


def cut(folder: Path) -> None:
    path = folder / SCORES_FILE
    path.write_bytes(path.read_bytes()[:-8])


def other_calibration(folder: Path) -> None:
    make_scores(seed=5).save(folder / "other")
    (folder / SCORES_FILE).write_bytes((folder / "other" / SCORES_FILE).read_bytes())


def shape_that_no_config_has(folder: Path) -> None:
    """Consistent in itself, but of one head less than the configuration says."""
    traces = {name: trace[..., :2] for name, trace in make_scores().scene_traces.items()}
    write_sidecar(folder, make_info(), traces)


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
    "no metadata": (
        edit_tensors(nothing, **{CONFIG_FILE: None}),
        SCORES_FILE,
        "metadata lack hess_config.json",
    ),
    "no fingerprint": (
        edit_tensors(nothing, traces_sha256=None),
        SCORES_FILE,
        "metadata lack traces_sha256",
    ),
    "another fingerprint": (edit_tensors(nothing, traces_sha256="0" * 64), SCORES_FILE, "traces_sha256"),
    "one trace changed": (
        edit_tensors(lambda t: t["scene_trace.camera"][1, 0, 2].mul_(1 + 1e-15)),
        SCORES_FILE,
        "its scene traces do not have the traces_sha256 of its metadata; fetch the file again",
    ),
    "heads swapped": (
        edit_tensors(lambda t: t.update({n: v.flip(-1).contiguous() for n, v in t.items()})),
        SCORES_FILE,
        "its scene traces do not have the traces_sha256",
    ),
    "more projections": (edit_config(projections=["query", "key"]), SCORES_FILE, "another hess_config.json"),
    "views of too few scenes": (edit_config(view_ids=[["1"]]), CONFIG_FILE, "view_ids must be one list for"),
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
    "shape": (shape_that_no_config_has, SCORES_FILE, r"scene_trace.camera must be .* got \[2, 2, 2\]"),
    "NaN": (
        edit_tensors(
            lambda t: t.update({"scene_trace.camera": NAN, "fisher_trace.camera": NAN[0].clone()}),
            traces_sha256=traces_sha256({"camera": NAN, "points": make_scores().scene_traces["points"]}),
        ),
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
