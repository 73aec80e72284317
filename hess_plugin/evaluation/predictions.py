"""Predictions on disk: one file per scene with its ground truth beside it, and the configuration of the run.

    run.json                     the full configuration
    scenes/<scene id>.safetensors
    scores/                      the sidecar of the run's scores, if it has any
    gates/                       the head gates that it prunes by, or whose scenes it leaves out

Tensors of a scene: `extrinsics`, `intrinsics`, `points`, `depth`, `confidence` as in `Prediction`, and
`truth.extrinsics`, `truth.intrinsics`, `truth.depth` as in `Scene`, as far as they are known. Where only
cameras are kept, all but the extrinsics and intrinsics are left out. Metrics read nothing else; pictures also
read `images` [V, 3, height, width] uint8, the photos as the model saw them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..datasets.scene import Scene
from ..errors import InputError, input_errors
from ..files import write_atomic
from ..geometry.cameras import unproject_depth
from .compare import Reference
from .predict import Prediction
from .run_file import RunFile

RUN_FILE, SCENES, SCORES, GATES, METRICS_FILE = "run.json", "scenes", "scores", "gates", "metrics.json"
FORMAT = 1
_RECORD = "record"
_TENSORS = ("extrinsics", "intrinsics", "points", "depth", "confidence")
_CAMERAS = ("extrinsics", "intrinsics")


@dataclass(frozen=True)
class SavedPrediction:
    """What one file holds."""

    scene_id: str
    view_ids: tuple[str, ...] = ()  # in the order in which the model saw them
    seconds: float | None = None  # of the forward pass; None: other processes had the device, too
    density: float = 1.0  # measured share of attended blocks
    peak_memory: int = 0  # bytes on the GPU during the pass; 0 on a CPU
    failure: str | None = None  # why there is no prediction
    tensors: dict[str, Tensor] = field(default_factory=dict)  # see the top of this file

    @classmethod
    def of(cls, prediction: Prediction, scene: Scene, cameras_only: bool) -> Self:
        """A prediction with the scene's ground truth."""
        kept = _CAMERAS if cameras_only else _TENSORS
        tensors = {name: getattr(prediction, name) for name in kept}
        for name in _CAMERAS if cameras_only else (*_CAMERAS, "depth"):
            if (known := getattr(scene, name)) is not None:
                tensors[f"truth.{name}"] = known
        p = prediction
        return cls(scene.name, scene.view_ids, p.seconds, p.density, p.peak_memory, tensors=tensors)

    def with_photos(self, images: Tensor) -> Self:
        """The same with the photos [V, 3, height, width] in [0, 1], which only pictures need."""
        return replace(self, tensors=self.tensors | {"images": (images.clamp(0, 1) * 255).round().byte()})

    def tensor(self, name: str) -> Tensor:
        """A tensor by name; InputError says what to do where there is none."""
        if name not in self.tensors:
            missing = name.removeprefix("truth.")
            why = (
                f"its dataset has no {missing} for it"
                if name.startswith("truth.") and "points" in self.tensors
                else "predict again without --cameras-only"
            )
            raise InputError(f"the prediction of scene {self.scene_id!r} has no {name}: {why}.")
        return self.tensors[name]

    @property
    def prediction(self) -> Prediction:
        """All that was predicted; InputError if only cameras were kept."""
        tensors = {name: self.tensor(name) for name in _TENSORS}
        return Prediction(
            self.scene_id,
            **tensors,
            seconds=self.seconds,
            density=self.density,
            peak_memory=self.peak_memory,
        )

    @property
    def scene(self) -> Scene:
        """The photos under the scene's name; InputError if only cameras were kept."""
        return Scene(self.scene_id, self.tensor("images").float() / 255, view_ids=self.view_ids)

    @property
    def reference(self) -> Reference:
        """The ground truth; InputError if it is not known, or only cameras were kept."""
        known = {name: self.tensor(f"truth.{name}") for name in (*_CAMERAS, "depth")}
        points = unproject_depth(known["depth"], known["extrinsics"], known["intrinsics"])
        return Reference(**known, points=points, mask=known["depth"] > 0, is_ground_truth=True)


@dataclass(frozen=True)
class PredictionFolder:
    """The predictions of one run."""

    path: Path

    @property
    def _run_file(self) -> RunFile:
        return RunFile(self.path / RUN_FILE, FORMAT, "predictions", "hess predict")

    def read_run(self) -> dict[str, Any]:
        """Content of `run.json`; InputError if there is none that can be read."""
        return self._run_file.read()

    def begin(self, run: dict[str, Any]) -> list[str]:
        """Make the folder for a run, or go on with it; returns the scenes that are still to be predicted.

        Scenes that failed before are tried again.

        Raises:
            InputError: the folder holds predictions of a run with other settings, or cannot be written.
        """
        self._run_file.begin(run, may_differ=("command",))
        return [scene_id for scene_id in run["views"] if not self._is_done(scene_id)]

    def write(self, saved: SavedPrediction) -> None:
        """Keep the prediction of a scene; the file appears whole or not at all."""
        described = asdict(replace(saved, tensors={}))
        # Copies, as safetensors refuses tensors that share memory.
        tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in saved.tensors.items()}
        path = self._file(saved.scene_id)
        with input_errors(OSError, prefix=f"cannot write {path}: "):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, safetensors.torch.save(tensors, {_RECORD: json.dumps(described)}))

    def read(self, scene_id: str, with_tensors: bool = True) -> SavedPrediction:
        """The prediction of a scene, or only what is said about it.

        Raises:
            InputError: there is none, or the file is damaged.
        """
        path = self._file(scene_id)
        if not path.is_file():
            raise InputError(f"{self.path} has no prediction of scene {scene_id!r}; run hess predict again.")
        prefix = f"{path} is damaged (remove it and run hess predict again): "
        with input_errors(OSError, SafetensorError, ValueError, KeyError, TypeError, prefix=prefix):
            with safe_open(path, framework="pt") as file:
                described = json.loads(file.metadata()[_RECORD])
                names = file.keys() if with_tensors else ()
                tensors = {name: file.get_tensor(name) for name in names}
            described |= {"view_ids": tuple(described["view_ids"]), "tensors": tensors}
            return SavedPrediction(**described)

    def count(self) -> int:
        """How many scenes have a file."""
        return sum(1 for _ in (self.path / SCENES).rglob("[!.]*.safetensors"))

    def _is_done(self, scene_id: str) -> bool:
        path = self._file(scene_id)
        try:
            done = path.exists() and self.read(scene_id).failure is None
        except InputError:
            done = False
        if not done:
            path.unlink(missing_ok=True)
        return done

    def _file(self, scene_id: str) -> Path:
        return self.path / SCENES / f"{scene_id}.safetensors"
