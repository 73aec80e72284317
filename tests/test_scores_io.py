"""The files of a sidecar: written as a function of their content, read completely or refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from toy_scores import make_info, make_scores

from hess_plugin.config import PROJECTIONS
from hess_plugin.scores import (
    CONFIG_FILE,
    FORMAT_VERSION,
    SCORES_FILE,
    HeadScores,
    ScoresInfo,
)
from hess_plugin.scores_io import traces_sha256, write_sidecar


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
        for number in range(2):
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
