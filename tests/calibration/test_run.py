"""`hess calibrate`: from the command line to a sidecar that loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from doubles import tiny_native_vggt
from safetensors.torch import load_file, save_file

from hess_plugin.cli import main
from hess_plugin.scores import HeadScores


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_native_vggt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def calibrate(model: Path, out: Path, *more: str) -> list[str]:
    return ["calibrate", "--model", str(model), "--out", str(out), "--device", "cpu", *more]


def test_writes_a_sidecar_beside_the_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model / "hess" / "synthetic"
    sizes = ("--num-scenes", "2", "--num-views", "3", "--max-points", "50")
    assert main(calibrate(model, out, "--dataset", "synthetic", *sizes)) == 0
    scores = HeadScores.load(out)
    assert scores.info.dataset == "synthetic"
    assert scores.info.scene_ids == ("synthetic-10000", "synthetic-10001")
    assert (scores.info.num_views, scores.info.calibration["max_points"]) == (3, 50)
    assert torch.isfinite(scores.weights()).all()
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "imagenet"], "unknown dataset 'imagenet'; known: synthetic, folder."),
        (["--dataset", "folder"], "--root is the folder of scenes"),
        (["--dataset", "synthetic", "--root", "."], "--root is the folder of scenes"),
        (["--dataset", "synthetic", "--num-views", "0"], "num_views must be an integer of at least 1"),
        (["--dataset", "folder", "--root", "EMPTY"], "holds no scene"),
        (["--dataset", "synthetic", "--device", "quux"], "cannot use the device 'quux'"),
        (["--dataset", "synthetic", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    more = [str(tmp_path / "EMPTY") if word == "EMPTY" else word for word in more]
    assert main(calibrate(model, tmp_path / "scores", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hess calibrate: ")
    assert message in error
    assert not (tmp_path / "scores" / "hess_config.json").exists()


def test_earlier_scores_are_left_alone(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model / "hess" / "synthetic"
    out.mkdir(parents=True)
    (out / "hess_config.json").write_text("{}")
    assert main(calibrate(model, out, "--dataset", "synthetic")) == 2
    assert "holds scores already" in capsys.readouterr().err
    assert (out / "hess_config.json").read_text() == "{}"


def test_incomplete_checkpoint_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(model / "model.safetensors")
    partial = {name: value for name, value in weights.items() if "global_blocks" not in name}
    save_file(partial, model / "model.safetensors", metadata={"format": "pt"})
    assert main(calibrate(model, tmp_path / "scores", "--dataset", "synthetic")) == 2
    assert "is no VGGT checkpoint: it lacks" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hess_plugin.calibrate", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "--dataset" in done.stdout
