"""`hess report` of predictions: which scenes are shown, against what, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import write_sweep
from toy_scores import make_scores
from viewing import bent, small_scene, write_predictions

from hess_plugin.cli import main
from hess_plugin.evaluation.predictions import SCORES, PredictionFolder, SavedPrediction
from hess_plugin.report.scenes import Predictions


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """HeSS on three scenes and dense on two of them."""
    scenes = [small_scene(seed) for seed in (3, 4, 5)]
    found = [write_predictions(tmp_path / "sparse", "hess", scenes)]
    make_scores().save(found[0] / SCORES)
    return [*found, write_predictions(tmp_path / "full", "dense", scenes[1:])]


def shown(page: Path) -> dict:
    """The data of a page."""
    text = page.read_text()
    start = text.index('<script id="data" type="application/json">')
    return json.loads(text[text.index(">", start) + 1 : text.index("</script>", start)])


def test_page_and_clouds(folders: list[Path], tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "toy", scenes=3)
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["report", str(sweep), *map(str, folders), "--out", str(out)]) == 0
    data = shown(out / "index.html")
    assert [scene["name"] for scene in data["scenes"]] == ["synthetic-4", "synthetic-5"]
    assert [column["method"] for column in data["scenes"][0]["columns"]] == ["ground_truth", "dense", "hess"]
    assert data["configurations"]["HeSS"]["sparsity"] == {"allocation": "hess", "sparse_ratio": 0.5}
    assert data["shares"]["camera"] == make_scores().weights(1.0).tolist()
    assert (out / "clouds/synthetic-4/scene_hess.glb").stat().st_size > 1000
    assert (out / "clouds/synthetic-5/points_ground_truth.ply").stat().st_size > 1000
    text = (out / "index.html").read_text()
    assert "<h2>toy</h2>" in text
    assert '<img src="data:image/png;base64,' in text
    assert "hess sweep --preset paper" in text
    assert (out / "report.md").read_text().startswith("# Results of sweeps")


def test_scenes_by_name(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["report", *map(str, folders), "--out", str(tmp_path / "out"), "--scenes"]
    assert main([*arguments, "synthetic-5"]) == 0
    assert [scene["name"] for scene in shown(tmp_path / "out/index.html")["scenes"]] == ["synthetic-5"]
    assert not (tmp_path / "out/report.md").exists()
    assert main([*arguments, "synthetic-3"]) == 2
    assert "'synthetic-3' is not predicted in all folders" in capsys.readouterr().err


def test_few_of_many(tmp_path: Path) -> None:
    scene = small_scene()
    scenes = [replace(scene, name=f"s{index:02d}") for index in range(13)]
    read = Predictions.read([write_predictions(tmp_path / "full", "dense", scenes)])
    assert read.scene_ids == ("s00", "s02", "s04", "s06", "s08", "s10")
    assert read.num_common == 13


def test_two_runs_of_one_method_go_by_their_folders(tmp_path: Path) -> None:
    scenes = [small_scene()]
    folders = [write_predictions(tmp_path / name, "hess", scenes) for name in ("half", "quarter")]
    read = Predictions.read([*folders, write_predictions(tmp_path / "full", "dense", scenes)])
    assert list(read.folders) == ["dense", "half", "quarter"]


def test_methods_and_seconds_that_are_not_known(folders: list[Path], tmp_path: Path) -> None:
    scenes = [small_scene(seed) for seed in (4, 5)]
    pruned = write_predictions(
        tmp_path / "a", "hess", scenes, sparsity=None, baseline={"method": "kwon", "kept_share": 0.5}
    )
    folder = PredictionFolder(pruned)
    for scene in scenes:
        folder.write(replace(folder.read(scene.name), seconds=None))
    assert main(["report", str(pruned), *map(str, folders), "--out", str(tmp_path / "out")]) == 0
    columns = shown(tmp_path / "out/index.html")["scenes"][0]["columns"]
    assert [column["name"] for column in columns] == ["Ground truth", "Dense", "Pruning (Kwon)", "HeSS"]
    assert [column["numbers"].get("seconds") for column in columns] == [None, 1.0, None, 1.0]


def test_without_truth_dense_is_the_reference(tmp_path: Path) -> None:
    known = small_scene()
    scene = replace(known, extrinsics=None, intrinsics=None, depth=None)
    folders = []
    for method in ("uniform", "dense"):
        folders.append(write_predictions(tmp_path / method, method, []))
        run = PredictionFolder(folders[-1]).read_run() | {"views": {scene.name: None}}
        (folders[-1] / "run.json").write_text(json.dumps(run))
        saved = SavedPrediction.of(bent(known, method), scene, False).with_photos(scene.images)
        PredictionFolder(folders[-1]).write(saved)
    (result,) = Predictions.read(folders).results()
    assert result.shown == ["dense", "uniform"]
    assert result.metrics["dense"]["point_error"] == pytest.approx(0, abs=1e-5)
    assert result.metrics["uniform"]["point_error"] > 0.001
    with pytest.raises(ValueError, match="no known depth; add a folder of dense predictions"):
        next(Predictions.read(folders[:1]).results())


def test_what_does_not_fit(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    other = write_predictions(tmp_path / "other", "uniform", [small_scene(9)])
    assert main(["report", str(folders[0]), str(other), *out]) == 2
    assert "no predicted scene in common" in capsys.readouterr().err
    folder = PredictionFolder(folders[0])
    saved = folder.read("synthetic-4")
    folder.write(replace(saved, view_ids=tuple("abcde")))
    assert main(["report", *map(str, folders), *out]) == 2
    assert "saw other views of scene 'synthetic-4'" in capsys.readouterr().err
    del saved.tensors["images"]
    folder.write(saved)
    assert main(["report", str(folders[0]), *out]) == 2
    assert "has no images: predict again without --cameras-only" in capsys.readouterr().err
