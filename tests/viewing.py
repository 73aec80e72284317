"""Scenes with predictions that need no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from predictions import bent_prediction

from hess_plugin.datasets import Scene, synthetic_scene
from hess_plugin.evaluation.predict import Prediction
from hess_plugin.evaluation.predictions import PredictionFolder, SavedPrediction

BENDS = {"dense": 0.01, "uniform": 0.2, "hess": 0.05}


def small_scene(seed: int = 3, name: str | None = None) -> Scene:
    scene = synthetic_scene(seed, 5, image_size=(42, 56))
    return replace(scene, name=name or scene.name)


def bent(scene: Scene, method: str) -> Prediction:
    """A prediction that is the farther off the sparser its method."""
    made = bent_prediction(scene, BENDS[method])
    values = (made.extrinsics[0], scene.intrinsics, made.points[0], made.depth[0], made.confidence[0])
    density = 1.0 if method == "dense" else 0.5
    return Prediction(scene.name, *(value.float() for value in values), seconds=1.0, density=density)


def write_predictions(root: Path, method: str, scenes: list[Scene], **changes: Any) -> Path:
    """A folder as `hess predict` leaves it."""
    run = {
        "format": 1, "command": f"hess predict --out {root.name}", "dataset": "synthetic", "seed": 0,
        "model": {"name": "tiny", "revision": None, "family": "vggt", "sha256": "0" * 64}, "device": "cpu",
        "sparsity": None if method == "dense" else {"allocation": method, "sparse_ratio": 0.5},
        "versions": {"torch": "2"}, "views": {scene.name: None for scene in scenes},
    }  # fmt: skip
    folder = PredictionFolder(root)
    folder.begin(run | changes)
    for scene in scenes:
        saved = SavedPrediction.of(bent(scene, method), scene, cameras_only=False)
        folder.write(saved.with_photos(scene.images))
    return root
