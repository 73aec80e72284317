"""`hess predict --baseline`: what runs, what is recorded of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrated_model import SCORES_FOLDER, save_calibrated_model

from hess_plugin.baselines.choice import Baseline, apply_baseline
from hess_plugin.baselines.pruning import HeadPruningConfig
from hess_plugin.baselines.token_merging import TokenMergingConfig
from hess_plugin.cli import main
from hess_plugin.datasets.choice import DatasetChoice
from hess_plugin.evaluation.predict import predict
from hess_plugin.evaluation.predictions import GATES, PredictionFolder
from hess_plugin.gates import GATES_FILE, HeadGates
from hess_plugin.loading import open_scenes
from hess_plugin.models import VggtModel

SCENES = ["--dataset", "synthetic", "--num-scenes", "2", "--num-views", "3", "--device", "cpu"]
NOT_CALIBRATED_ON = ["synthetic-10006", "synthetic-10007"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., PredictionFolder]:
    """Predict into a folder of this name."""

    def predicted(out: str, *options: str, code: int = 0) -> PredictionFolder:
        command = ["predict", "--model", str(model), "--out", str(tmp_path / out), *SCENES, *options]
        assert main(command) == code
        return PredictionFolder(tmp_path / out)

    return predicted


@pytest.mark.parametrize(
    ("text", "config", "described"),
    [
        (
            "kwon,kept_share=0.4",
            HeadPruningConfig("kwon", 0.4),
            {"method": "kwon", "kept_share": 0.4, "camera_weight": 0.5, "dense_layers": []},
        ),
        (
            "michel,kept_share=0.8,dense_layers=[1],camera_weight=0.25",
            HeadPruningConfig("michel", 0.8, 0.25, (1,)),
            {"method": "michel", "kept_share": 0.8, "camera_weight": 0.25, "dense_layers": [1]},
        ),
        (
            "merging,merged_share=0.3,region_size=3,dense_layers=[1]",
            TokenMergingConfig(0.3, region_size=3, dense_layers=(1,)),
            {
                "method": "merging", "merged_share": 0.3, "salient_share": 0.1, "region_size": 3, "seed": 0,
                "dense_layers": [1], "dense_below_tokens": 0,
            },
        ),
    ],
)  # fmt: skip
def test_what_is_asked_for_runs_and_is_recorded(
    run: Callable[..., PredictionFolder], model: Path, text: str, config: Baseline, described: dict
) -> None:
    folder = run("out", "--baseline", text)
    recorded, gates = folder.read_run(), HeadGates.load(model / SCORES_FOLDER)
    assert list(recorded["views"]) == NOT_CALIBRATED_ON
    assert recorded["baseline"] == described
    assert recorded["sparsity"] is None
    native = VggtModel.from_pretrained(model, dtype=torch.float32).eval()
    for scene_id in NOT_CALIBRATED_ON:
        saved = folder.read(scene_id)
        scene = open_scenes(DatasetChoice("synthetic"), native, 3).load(scene_id, 3, 0)
        with apply_baseline(native, config, gates) as handle:
            expected = predict(native, scene, handle)
        assert saved.density == expected.density
        torch.testing.assert_close(saved.prediction.extrinsics, expected.extrinsics)
        assert not torch.allclose(saved.prediction.extrinsics, predict(native, scene).extrinsics, atol=1e-3)
    if config == HeadPruningConfig("kwon", 0.4):
        assert saved.density == 3 / 8  # the nearest number of heads
    if isinstance(config, TokenMergingConfig):
        assert recorded["gates"] is None
        assert not (folder.path / GATES).exists()
    else:
        assert recorded["gates"] == {"dataset": "synthetic", "num_scenes": 6, "sha256": gates.sha256}
        assert HeadGates.load(folder.path / GATES).sha256 == gates.sha256


def test_metrics_name_the_method(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path), *SCENES, "--baseline", "merging,merged_share=0.25"]
    assert main(["evaluate", "--model", str(model), *options]) == 0
    assert "merging, measured density 0.5" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["baseline"]["merged_share"] == 0.25
    measured = json.loads((tmp_path / "measurements.json").read_text())
    assert {each["method"] for each in measured} == {"merging"}


def test_resumed_but_not_changed(
    run: Callable[..., PredictionFolder], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("out", "--baseline", "kwon")
    first = folder.path / f"scenes/{NOT_CALIBRATED_ON[0]}.safetensors"
    (folder.path / f"scenes/{NOT_CALIBRATED_ON[1]}.safetensors").unlink()
    stamp = first.stat().st_mtime_ns
    run("out", "--baseline", "kwon,kept_share=0.5")  # the default, written out
    assert first.stat().st_mtime_ns == stamp
    assert folder.count() == 2
    capsys.readouterr()
    for other in ("kwon,kept_share=0.75", "michel", "kwon,camera_weight=1"):
        run("out", "--baseline", other, code=2)
        assert "predictions of another run, which differs in baseline; choose" in capsys.readouterr().err
    own = HeadGates.load(model / SCORES_FOLDER)
    HeadGates({name: -2 * each for name, each in own.gradients.items()}, own.info).save(tmp_path / "gates")
    run("out", "--baseline", "kwon", "--gates", str(tmp_path / "gates"), code=2)
    assert "which differs in gates" in capsys.readouterr().err
    run("out", code=2)
    assert "which differs in baseline, gates" in capsys.readouterr().err


def test_folders_of_before_go_on(run: Callable[..., PredictionFolder]) -> None:
    folder = run("out")
    described = {k: v for k, v in folder.read_run().items() if k not in ("baseline", "gates")}
    (folder.path / "run.json").write_text(json.dumps(described))
    assert run("out").read_run()["baseline"] is None
    assert main(["evaluate", "--predictions", str(folder.path)]) == 0


def test_scenes_of_named_gates_are_left_out(
    run: Callable[..., PredictionFolder], model: Path, tmp_path: Path
) -> None:
    """By dense runs, too, so that methods see the same scenes."""
    own = HeadGates.load(model / SCORES_FOLDER)
    ids = tuple(f"synthetic-{10_007 + k}" for k in range(6))
    HeadGates(own.gradients, replace(own.info, scene_ids=ids)).save(tmp_path / "gates")
    for name, method in (("dense", []), ("pruned", ["--baseline", "michel"])):
        views = run(name, "--gates", str(tmp_path / "gates"), *method).read_run()["views"]
        assert list(views) == ["synthetic-10006", "synthetic-10013"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--baseline fastvggt", "--baseline: unknown baseline 'fastvggt'; known: michel, kwon, merging."),
        ("--baseline kept_share=0.5", "unknown baseline 'kept_share=0.5'"),
        ("--baseline ,", "unknown baseline ''"),
        ("--baseline kwon,0.5", "--baseline takes settings as NAME=VALUE,..., got '0.5'"),
        (
            "--baseline kwon,share=0.5",
            "--baseline: unknown key 'share' in HeadPruningConfig; known: rule, kept",
        ),
        ("--baseline kwon,rule=michel", "the rule is kwon, as the baseline is named; leave rule=michel out"),
        ("--baseline kwon,kept_share=1.5", "--baseline: kept_share must be in [0, 1], got 1.5"),
        ("--baseline kwon,kept_share=null", "kept_share must be in [0, 1], got None"),
        ("--baseline kwon,kept_share=NaN", "kept_share must be in [0, 1], got nan"),
        ("--baseline kwon,dense_layers=1", "dense_layers must be indices of global layers, got 1"),
        ("--baseline kwon,dense_layers=[0,7]", "dense_layers has 7, the gates have 2 global layers"),
        ("--baseline merging,dense_layers=[7]", "dense_layers has 7, this model has 2 global layers"),
        ("--baseline merging,merged_share=half", "merged_share must be in [0, 1], got 'half'"),
        ("--baseline merging,kept_share=0.5", "unknown key 'kept_share' in TokenMergingConfig"),
        (
            "--baseline kwon --sparse",
            "--sparse and --baseline are two ways to run a model; give one of them.",
        ),
        ("--baseline kwon --gates {empty}", f"has no {GATES_FILE}; measure it with hess calibrate --gates"),
        ("--baseline kwon --hess {scores}", "head pruning (kwon) needs gates, and there are none beside"),
        ("--baseline kwon --gates {other}", "scores are for pi3 with"),
    ],
)
def test_bad_options(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    from hess_plugin.scores import HeadScores

    HeadScores.load(model / SCORES_FOLDER).save(tmp_path / "scores")
    own = HeadGates.load(model / SCORES_FOLDER)
    HeadGates(own.gradients, replace(own.info, backbone="pi3")).save(tmp_path / "other")
    folders = {name: tmp_path / name for name in ("scores", "other", "empty")}
    given = options.format(**folders).split()
    assert main(["predict", "--model", str(model), "--out", str(tmp_path / "out"), *SCENES, *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
