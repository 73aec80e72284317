"""Files of predictions: what is written is read, what is damaged or of another run is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.errors import InputError
from hess_plugin.evaluation.predict import Prediction
from hess_plugin.evaluation.predictions import PredictionFolder, SavedPrediction

SCENE = replace(synthetic_scene(3, 4, image_size=(10, 14)), name="apple/1_2")
RUN = {"format": 1, "seed": 0, "command": "hess predict", "views": {"apple/1_2": ["000"], "bench/3": None}}


def prediction() -> Prediction:
    shape = SCENE.depth.shape
    return Prediction(
        SCENE.name, SCENE.extrinsics, SCENE.intrinsics, SCENE.world_points, SCENE.depth,
        torch.rand(shape), seconds=1.5, density=0.25,
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    assert folder.begin(RUN) == ["apple/1_2", "bench/3"]
    made = prediction()
    folder.write(SavedPrediction.of(made, SCENE, cameras_only=False))
    saved = folder.read("apple/1_2")
    for name in ("extrinsics", "intrinsics", "points", "depth", "confidence"):
        assert torch.equal(getattr(saved.prediction, name), getattr(made, name)), name
    assert (saved.view_ids, saved.seconds, saved.density) == (SCENE.view_ids, 1.5, 0.25)
    reference = saved.reference
    assert torch.equal(reference.mask, SCENE.mask)
    torch.testing.assert_close(reference.points[reference.mask], SCENE.world_points[SCENE.mask])
    assert folder.count() == 1
    assert folder.begin(RUN | {"command": "called otherwise"}) == ["bench/3"]
    assert folder.read_run()["views"] == RUN["views"]


def test_cameras_only(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.begin(RUN)
    folder.write(SavedPrediction.of(prediction(), SCENE, cameras_only=True))
    saved = folder.read("apple/1_2")
    assert set(saved.tensors) == {"extrinsics", "intrinsics", "truth.extrinsics", "truth.intrinsics"}
    with pytest.raises(InputError, match="'apple/1_2' has no points: predict again without --cameras-only"):
        _ = saved.prediction
    with pytest.raises(InputError, match=r"no truth\.depth: predict again without"):
        _ = saved.reference


def test_scene_without_ground_truth(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.begin(RUN)
    folder.write(SavedPrediction.of(prediction(), replace(SCENE, depth=None), cameras_only=False))
    with pytest.raises(InputError, match=r"no truth\.depth: its dataset has no depth for it"):
        _ = folder.read("apple/1_2").reference


def test_failed_and_damaged_scenes_are_predicted_again(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.begin(RUN)
    folder.write(SavedPrediction("bench/3", failure="frame 7 is cut short"))
    folder.write(SavedPrediction.of(prediction(), SCENE, cameras_only=True))
    assert folder.read("bench/3").failure == "frame 7 is cut short"
    assert folder.begin(RUN) == ["bench/3"]
    path = tmp_path / "scenes/apple/1_2.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"1_2\.safetensors is damaged \(remove it"):
        folder.read("apple/1_2")
    assert folder.begin(RUN) == ["apple/1_2", "bench/3"]
    assert not path.exists()


def test_another_run_is_refused(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.begin(RUN)
    with pytest.raises(InputError, match="predictions of another run, which differs in seed; choose another"):
        folder.begin(RUN | {"seed": 1})
    assert folder.read_run()["seed"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no predictions"),
        ("{", "cannot read"),
        ("{}", "'format'"),
        ('{"format": 9}', "format is 9"),
    ],
)
def test_no_run(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=message):
        PredictionFolder(tmp_path).read_run()
    with pytest.raises(InputError, match="has no prediction of scene 'x'"):
        PredictionFolder(tmp_path).read("x")
