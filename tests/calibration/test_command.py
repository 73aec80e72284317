"""`hess calibrate`: from the command line to a sidecar that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from calibrating import UNTRAINED, calibrate
from doubles import TinyVGGT, tiny_native_vggt

from hess_plugin.calibration import command
from hess_plugin.calibration.command import CalibrationRun
from hess_plugin.calibration.run import LOG_FILE
from hess_plugin.cli import main
from hess_plugin.scores import HeadScores

SIZES = ("--num-scenes", "2", "--num-views", "3", "--max-points", "50")


def test_writes_a_sidecar_beside_the_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model / "hess" / "synthetic"
    assert main(calibrate(model, out, "--dataset", "synthetic", *SIZES, *UNTRAINED)) == 0
    scores = HeadScores.load(out)
    assert scores.info.dataset == "synthetic"
    assert scores.info.dataset_settings["image_width"] == 16
    assert scores.info.scene_ids == ("synthetic-10000", "synthetic-10001")
    assert (scores.info.num_views, scores.info.calibration["max_points"]) == (3, 50)
    assert (scores.info.base_model, scores.info.camera_weight) == ("model", 0.5)
    assert torch.isfinite(scores.weights()).all()
    printed = capsys.readouterr().out
    assert printed.startswith("Processes: 1 (cpu)\n2 scenes x 3 views of synthetic, none skipped\n")
    assert str(out) in printed
    assert LOG_FILE in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "imagenet"], "unknown dataset 'imagenet'; known: synthetic, folder, co3d, dtu."),
        (["--dataset", "folder"], "--dataset folder needs --root"),
        (["--dataset", "synthetic", "--root", "."], "synthetic reads no files; leave --root out"),
        (["--dataset", "co3d", "--root", "NOWHERE"], "there is no folder NOWHERE; give --root"),
        (["--dataset", "folder", "--root", "EMPTY"], "no scene"),
        (
            ["--dataset", "folder", "--root", "EMPTY", "--scans", "1"],
            "--scans is no option of --dataset folder",
        ),
        (["--dataset", "synthetic", "--with-background"], "--with-background is no option of --dataset"),
        (["--dataset", "synthetic", "--truth", "cloud"], "--truth cloud needs a dataset with point clouds"),
        (["--dataset", "synthetic", "--num-views", "0"], "num_views must be an integer of at least 1"),
        (["--dataset", "synthetic", "--projections", "key"], "projections must be 'query' and more of"),
        (["--dataset", "synthetic", "--image-width", "18"], "multiple of the patch size 4, got 18"),
        (["--dataset", "synthetic", "--device", "quux"], "cannot use the device 'quux'"),
        (["--dataset", "synthetic", "--out", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (["--dataset", "synthetic", "--model", "./nowhere"], "there is no model folder './nowhere'"),
        (["--dataset", "synthetic", "--model-class", "doubles"], "cannot import the class 'doubles'"),
        (["--dataset", "synthetic", "--model-class", "no.such:X"], "No module named 'no'"),
        (
            ["--dataset", "synthetic", "--model-class", "torch.nn:Linear"],
            "torch.nn:Linear has no from_pretrained",
        ),
        (["--dataset", "synthetic", "--num-scenes", "2", "--min-fitness", "1"], "2 of 2 scenes failed"),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    more = [str(tmp_path / "EMPTY") if word == "EMPTY" else word for word in more]
    assert main(calibrate(model, tmp_path / "scores", "--num-views", "3", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hess calibrate: ")
    assert message in error
    assert not (tmp_path / "scores" / "hess_config.json").exists()


def test_what_cannot_be_written_is_said_before_the_model_is_loaded(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_, **__: pytest.fail("loaded in vain"))
    out = model / "hess" / "synthetic"
    out.mkdir(parents=True)
    (out / "hess_config.json").write_text("{}")
    assert main(calibrate(model, out, "--dataset", "synthetic")) == 2
    assert "holds scores already" in capsys.readouterr().err
    assert (out / "hess_config.json").read_text() == "{}"


def test_missing_package_is_named_with_its_extra(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    assert main(calibrate(model, tmp_path, "--dataset", "synthetic", *SIZES, "--min-fitness", "0")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("hess calibrate: ")
    assert "hess-plugin[calibration]" in error


def test_every_option_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[CalibrationRun] = []
    monkeypatch.setattr(command, "run_calibration", given.append)
    options = (
        f"--model org/m --model-class a.b:C --dataset co3d --root {tmp_path} --out {tmp_path}/out --subset s "
        "--exclude e --categories apple,bench --num-scenes 3 --num-views 4 --image-width 224 --seed 5 "
        "--point-source depth --truth cloud --no-icp --min-fitness 0.5 --neighbors faiss --max-points 6 "
        "--precision bfloat16 --projections query,key --camera-weight 0.25 --device cuda:1 --resume "
        "--skip-failed"
    )
    assert main(["calibrate", *options.split()]) == 0
    run = given[0]
    assert (run.model, run.model_class, run.dataset, run.root) == ("org/m", "a.b:C", "co3d", tmp_path)
    assert (run.out, run.image_width, run.device) == (tmp_path / "out", 224, "cuda:1")
    assert (run.resume, run.skip_failed) == (True, True)
    assert run.options == {"subset": "s", "exclude": "e", "categories": "apple,bench"}
    config = run.config
    assert (config.num_scenes, config.num_views, config.seed, config.max_points) == (3, 4, 5, 6)
    assert (config.point_source, config.truth, config.icp, config.min_fitness) == (
        "depth",
        "cloud",
        False,
        0.5,
    )
    assert (config.neighbors, config.precision, config.camera_weight) == ("faiss", "bfloat16", 0.25)
    assert config.projections == ("query", "key")


def test_image_width_is_the_models_own_or_518_in_whole_patches() -> None:
    run = CalibrationRun(model="m", dataset="synthetic", out=Path("out"))
    assert command._open_dataset(run, tiny_native_vggt()).image_width == 16
    dataset = command._open_dataset(run, TinyVGGT(patch_size=16))
    assert (dataset.image_width, dataset.patch_size) == (512, 16)
    assert dataset.min_views == 20


def test_log_is_of_this_run(model: Path, tmp_path: Path) -> None:
    assert main(calibrate(model, tmp_path / "out", "--dataset", "synthetic", *SIZES, *UNTRAINED)) == 0
    log = json.loads((tmp_path / "out" / LOG_FILE).read_text())
    assert log["run"]["config"]["max_points"] == 50
    assert log["run"]["dataset_settings"]["patch_size"] == 4
    assert log["left_out"] == {}


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hess_plugin.calibrate", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    for group in ("scenes:", "errors:", "scores:", "accelerate launch"):
        assert group in done.stdout
