"""`hess predict` and `hess evaluate` from end to end, on a tiny model and miniature data sets."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from co3d_tree import write_traps
from doubles import tiny_native_vggt
from dtu_tree import surface_points, views_in_mm, write_official, write_pointmap
from predictions import perfect_prediction, quarter_turn
from ranks import run_ranks
from tiny_checkpoint import save_scores

from hess_plugin.cli import main
from hess_plugin.datasets import open_dataset
from hess_plugin.datasets.scene import Scene
from hess_plugin.evaluation.evaluate import EvaluationRun, run_evaluation
from hess_plugin.evaluation.measurements import read_measurements
from hess_plugin.evaluation.predict import Prediction, fit_intrinsics
from hess_plugin.evaluation.predictions import PredictionFolder, SavedPrediction

SMALL = ["--dataset", "synthetic", "--num-scenes", "3", "--num-views", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_native_vggt().save_pretrained(folder)
    return folder


def evaluate(model: Path, out: Path, *options: str) -> dict:
    assert main(["evaluate", "--model", str(model), "--out", str(out), *options]) == 0
    return json.loads((out / "metrics.json").read_text())


class TestScenes:
    def test_dense_then_again_without_a_model(self, model: Path, tmp_path: Path) -> None:
        found = evaluate(model, tmp_path / "out", *SMALL)
        assert (found["protocol"], found["density"], len(found["scenes"])) == ("scene", 1, 3)
        values = [scene["auc_30"] for scene in found["scenes"].values()]
        assert found["overall"]["auc_30"] == pytest.approx(sum(values) / 3)
        measured = {each.metric: each for each in read_measurements(tmp_path / "out/measurements.json")}
        assert measured["auc_30"].value == found["overall"]["auc_30"]
        assert (measured["ate"].method, measured["ate"].num_views) == ("dense", 4)
        before = (tmp_path / "out/metrics.json").read_bytes()
        (tmp_path / "out/metrics.json").unlink()
        shutil.move(tmp_path / "out", tmp_path / "moved")
        assert main(["evaluate", "--predictions", str(tmp_path / "moved")]) == 0
        assert (tmp_path / "moved/metrics.json").read_bytes() == before

    def test_sparse_run_says_all_about_itself(self, model: Path, tmp_path: Path) -> None:
        setting = "allocation=uniform,sparse_ratio=0.5,cdf_threshold=0,q_block_size=8,kv_block_size=8"
        found = evaluate(model, tmp_path / "out", *SMALL, "--sparse", setting)
        assert 0.4 < found["density"] < 0.6
        run = found["run"]
        assert (run["sparsity"]["allocation"], run["sparsity"]["kv_block_size"]) == ("uniform", 8)
        assert (run["seed"], run["num_views"], run["scores"]) == (0, 4, None)
        assert run["model"]["name"] == "model"
        assert str(tmp_path) not in json.dumps(found)

    def test_resumed_but_neither_changed_nor_extended(self, model: Path, tmp_path: Path) -> None:
        command = ["predict", "--model", str(model), "--out", str(tmp_path), *SMALL]
        assert main(command) == 0
        files = sorted((tmp_path / "scenes").iterdir())
        stamps = [path.stat().st_mtime_ns for path in files]
        content = files[1].read_bytes()
        files[1].unlink()
        assert main(command) == 0
        assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(files, stamps, strict=True)] == [
            True,
            False,
            True,
        ]
        assert len(files[1].read_bytes()) == pytest.approx(len(content), rel=0.01)
        assert main([*command, "--seed", "1"]) == 2
        assert main([*command, "--num-scenes", "4"]) == 2

    def test_looking_for_failures_reads_no_tensors(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, noticed = PredictionFolder.read, []

        def noted(folder: PredictionFolder, scene_id: str, with_tensors: bool = True) -> SavedPrediction:
            noticed.append(with_tensors)
            return read(folder, scene_id, with_tensors)

        monkeypatch.setattr(PredictionFolder, "read", noted)
        assert main(["predict", "--model", str(model), "--out", str(tmp_path), *SMALL]) == 0
        assert noticed == [False, False, False]

    def test_two_processes(self, model: Path, tmp_path: Path) -> None:
        options = ["--model", str(model), "--out", str(tmp_path), *SMALL]
        first, second = run_ranks(2, "predict", *options)
        assert first.startswith("Predictions: ")
        assert second == ""
        folder = PredictionFolder(tmp_path)
        assert folder.count() == 3
        alone = evaluate(model, tmp_path / "alone", *SMALL)
        for scene_id in folder.read_run()["views"]:
            assert folder.read(scene_id).seconds is None  # both on one CPU
            assert PredictionFolder(tmp_path / "alone").read(scene_id).seconds > 0
        assert main(["evaluate", "--predictions", str(tmp_path)]) == 0
        shared = json.loads((tmp_path / "metrics.json").read_text())
        assert shared["overall"]["auc_30"] == pytest.approx(alone["overall"]["auc_30"], abs=0.02)

    def test_calibration_scenes_are_left_out(self, tmp_path: Path) -> None:
        """Also by a dense run, so that dense and sparse runs see the same scenes."""
        from hess_plugin.scores import HeadScores

        torch.manual_seed(0)
        native = tiny_native_vggt()
        native.save_pretrained(tmp_path / "model")
        config = native.config
        scores = HeadScores.load(save_scores(tmp_path / "scores", config.num_heads))
        head_dim = config.embed_dim // config.num_heads
        info = replace(
            scores.info,
            num_layers=config.depth,
            head_dim=head_dim,
            scene_ids=("synthetic-10000", "synthetic-10002"),
            skipped={"synthetic-10003": "too hard"},
        )
        shape = (2, config.depth, config.num_heads)
        HeadScores({name: torch.rand(shape).double() for name in ("camera", "points")}, info).save(
            tmp_path / "model/hess/synthetic"
        )
        for out, sparse in (("dense", []), ("sparse", ["--sparse", "q_block_size=8,kv_block_size=8"])):
            found = evaluate(tmp_path / "model", tmp_path / out, *SMALL, *sparse)
            assert list(found["scenes"]) == ["synthetic-10001", "synthetic-10004", "synthetic-10005"]
            assert found["run"]["scores"]["dataset"] == "synthetic"


class TestCo3d:
    def test_both_protocols(self, model: Path, tmp_path: Path) -> None:
        write_traps(tmp_path / "co3d")
        options = [
            "--dataset",
            "co3d",
            "--root",
            str(tmp_path / "co3d"),
            "--num-views",
            "3",
            "--device",
            "cpu",
        ]
        vggt = evaluate(model, tmp_path / "vggt", *options, "--min-frames", "3", "--cameras-only")
        assert vggt["protocol"] == "co3d-vggt"
        assert list(vggt["categories"]) == ["apple", "chair"]
        curves = [metrics["auc_30"] for metrics in vggt["categories"].values()]
        assert vggt["overall"]["auc_30"] == pytest.approx(sum(curves) / 2)
        assert vggt["pooled"]["auc_30"] == pytest.approx(sum(curves) / 2)  # three pairs in each
        views = PredictionFolder(tmp_path / "vggt").read_run()["views"]
        frames = tmp_path / "frames.json"
        frames.write_text(json.dumps({"portrait": [4, 0, 2, 5], "scaled": [0, 2]}))
        pi3 = evaluate(model, tmp_path / "pi3", *options, "--protocol", "co3d-pi3", "--frames", str(frames))
        assert PredictionFolder(tmp_path / "pi3").read_run()["views"]["apple/portrait"][0] == "000008"
        # Six pairs of the first sequence and one of the second count alike.
        rows = pi3["scenes"]
        pooled = (6 * rows["apple/portrait"]["auc_30"] + rows["chair/scaled"]["auc_30"]) / 7
        assert pi3["overall"]["auc_30"] == pi3["pooled"]["auc_30"] == pytest.approx(pooled)
        assert set(views) == set(rows)

    def test_damaged_photo(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_traps(tmp_path / "co3d")
        next((tmp_path / "co3d/chair/scaled/images").iterdir()).write_bytes(b"no photo")
        options = [
            *("--model", str(model), "--dataset", "co3d", "--root", str(tmp_path / "co3d")),
            *("--num-views", "3", "--min-frames", "3", "--out", str(tmp_path / "out"), "--device", "cpu"),
        ]
        assert main(["evaluate", *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "1 of 2 scenes failed (chair/scaled: " in error
        assert str(tmp_path) not in error
        assert main(["evaluate", "--predictions", str(tmp_path / "out")]) == 2
        assert "leave them out with --skip-failed" in capsys.readouterr().err
        assert main(["evaluate", "--predictions", str(tmp_path / "out"), "--skip-failed"]) == 0
        assert "1 scene (1 failed)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def dtu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scan 1 of seven views in the point-map tree, with the official ground truth."""
    root = tmp_path_factory.mktemp("dtu")
    views = views_in_mm(7, 2)
    write_pointmap(root, views)
    write_official(root, surface_points(views, step=40))
    return root


def saved_truth(root: Path, out: Path, offset: float = 0.0, scale: float = 0.01) -> None:
    """Predictions that are the truth in another world, `offset` mm farther from their camera."""
    dataset = open_dataset("dtu", root=root, image_width=112, patch_size=8)
    scene: Scene = dataset.load("scan1", None, 0)
    farther = replace(scene, depth=scene.depth + offset * (scene.depth > 0))
    made = perfect_prediction(farther, quarter_turn(scale))
    folder = PredictionFolder(out)
    folder.begin(
        {
            "format": 1, "command": "hess predict", "views": {"scan1": None}, "dataset": "dtu",
            "protocol": "dtu-pi3", "sparsity": None, "model": {"name": "truth"}, "num_views": 7,
        }
    )  # fmt: skip
    points, extrinsics = made.points[0].float(), made.extrinsics[0].float()
    prediction = Prediction(
        "scan1", extrinsics, fit_intrinsics(points, extrinsics), points, made.depth[0].float(),
        made.confidence[0], seconds=1.0, density=1.0,
    )  # fmt: skip
    folder.write(SavedPrediction.of(prediction, scene, cameras_only=False))


class TestDtu:
    @pytest.mark.parametrize("protocol", ["dtu-pi3", "dtu-official"])
    def test_end_to_end(self, model: Path, dtu: Path, tmp_path: Path, protocol: str) -> None:
        options = ["--dataset", "dtu", "--root", str(dtu), "--device", "cpu", "--image-width", "64"]
        run = ["--protocol", "dtu-pi3", "--num-views", "2", "--sparse", "allocation=uniform"]
        if protocol == "dtu-official":  # an untrained model has all its cameras in one place
            run = ["--protocol", protocol, "--alignment", "pixels"]
        found = evaluate(model, tmp_path, *options, *run)
        assert list(found["scenes"]) == ["scan1"]
        assert found["overall"]["chamfer"] > 1
        views = PredictionFolder(tmp_path).read_run()["views"]["scan1"]
        assert views == (
            ["00000000", "00000005"] if protocol == "dtu-pi3" else [f"{k:08d}" for k in range(7)]
        )

    def test_truth_is_perfect_by_both(self, dtu: Path, tmp_path: Path) -> None:
        saved_truth(dtu, tmp_path)
        pointmap = run_evaluation(EvaluationRun(tmp_path)).overall
        assert max(pointmap["accuracy"], pointmap["completeness"]) < 0.01  # mm
        assert pointmap["normal_consistency"] > 0.999
        for alignment in ("cameras", "pixels"):
            run = EvaluationRun(tmp_path, "dtu-official", dtu, alignment)
            official = run_evaluation(run).overall
            assert official["accuracy"] < 6.0  # resized photos show pixels between those of the cloud
            assert official["accuracy_dropped"] == 0

    def test_known_offset(self, dtu: Path, tmp_path: Path) -> None:
        """All depths 10 mm too large, most of which alignment by pixels hides in the scale."""
        saved_truth(dtu, tmp_path / "exact")
        saved_truth(dtu, tmp_path / "moved", offset=10.0)
        figures = {
            (name, alignment): run_evaluation(
                EvaluationRun(tmp_path / name, "dtu-official", dtu, alignment)
            ).overall["accuracy"]
            for name in ("exact", "moved")
            for alignment in ("cameras", "pixels")
        }
        assert figures["moved", "cameras"] > figures["exact", "cameras"] + 2
        assert figures["moved", "pixels"] < figures["moved", "cameras"]

    def test_needs_the_official_files(self, dtu: Path, tmp_path: Path) -> None:
        saved_truth(dtu, tmp_path)
        with pytest.raises(ValueError, match="needs --truth, the folder with DTU's"):
            run_evaluation(EvaluationRun(tmp_path, "dtu-official"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--dataset synthetic", "--out is needed to predict"),
        ("--out {out}", "--dataset is needed to predict"),
        (
            "--out {out} --dataset synthetic --protocol co3d",
            "unknown protocol 'co3d'; known: scene, co3d-vggt",
        ),
        ("--out {out} --dataset synthetic --protocol dtu-pi3", "is for dtu, not for synthetic; leave it out"),
        ("--out {out} --dataset synthetic --num-views 0", "--num-views must be at least 1, got 0"),
        ("--out {out} --dataset synthetic --sparse ratio=1", "--sparse: unknown key 'ratio' in HeSSConfig"),
        ("--out {out} --dataset synthetic --sparse 0.5", "--sparse takes settings as NAME=VALUE"),
        (
            "--out {out} --dataset synthetic --sparse scores=co3d",
            "--sparse takes no scores; name them by --hess",
        ),
        (
            "--out {out} --dataset synthetic --device cpu --sparse allocation=uniform,dense_layers=[1,99]",
            "dense_layers has 99",
        ),
        ("--out {out} --dataset synthetic --hess ./none", "./none"),
        ("--predictions {out}", "holds no predictions"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    assert main(["evaluate", *options.format(out=tmp_path / "out").split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nan_is_refused_by_name(tmp_path: Path) -> None:
    from hess_plugin.evaluation.measuring import measure_poses

    broken = torch.eye(3, 4).repeat(3, 1, 1) * math.nan
    saved = SavedPrediction("apple/1", tensors={"extrinsics": broken, "truth.extrinsics": broken})
    with pytest.raises(ValueError, match="scene 'apple/1': predicted extrinsics hold NaN"):
        measure_poses([saved], "first", by_category=True)
