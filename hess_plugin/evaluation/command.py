"""The command `hess predict`: a model and scenes in, files of predictions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState
from torch import nn

from ..baselines.choice import Baseline, apply_baseline, describe_baseline, read_gates
from ..baselines.pruning import HeadPruningConfig
from ..config import HeSSConfig
from ..datasets import Scene
from ..datasets.reading import read_ahead
from ..errors import InputError, input_errors
from ..gates import HeadGates
from ..loading import open_scenes
from ..patch import HeSSHandle, apply_hess
from ..processes import from_main, shared_bar, shares_device
from ..scores import HeadScores
from ..tables import count_of
from .predict import predict
from .predictions import FORMAT, GATES, SCORES, PredictionFolder, SavedPrediction
from .setup import (
    ModelRun,
    describe_machine,
    describe_model,
    describe_scores,
    describe_sparsity,
    load_for,
    load_views,
)


@dataclass(frozen=True, kw_only=True)
class PredictionRun(ModelRun):
    """What to predict."""

    attention: HeSSConfig | Baseline | None = None  # None: dense; `scores` of a HeSSConfig are not read
    gates: Path | None = None  # of `hess calibrate --gates`; None: pruning takes those beside the scores
    cameras_only: bool = False  # keep no points and depth


@dataclass(frozen=True)
class Subject:
    """A model, dense, and what was calibrated on it, as far as the run reads it or leaves its scenes out."""

    model: nn.Module
    scores: HeadScores | None
    gates: HeadGates | None

    @classmethod
    def load(cls, run: PredictionRun, device: str) -> Self:
        """What a run needs; InputError if something is missing, or does not fit."""
        needed = isinstance(run.attention, HeSSConfig) and run.attention.allocation != "uniform"
        model, sidecar = load_for(run.model, run.model_class, run.hess, needed, device)
        prunes = isinstance(run.attention, HeadPruningConfig)
        gates = read_gates(run.gates, sidecar.folder if sidecar and prunes else None, model)
        subject = cls(model, None if sidecar is None else sidecar.scores, gates)
        with input_errors(ValueError), subject.attending(run.attention):
            return subject

    def attending(self, config: HeSSConfig | Baseline | None) -> AbstractContextManager[HeSSHandle | None]:
        """Within the block the model attends as configured; ValueError if that does not fit."""
        if config is None:
            return nullcontext()
        if isinstance(config, HeSSConfig):
            return apply_hess(self.model, self.scores, config)
        return apply_baseline(self.model, config, self.gates)

    def save(self, folder: Path) -> None:
        """Keep what was calibrated beside the predictions."""
        if self.scores is not None:
            self.scores.save(folder / SCORES)
        if self.gates is not None:
            self.gates.save(folder / GATES)


def run_prediction(run: PredictionRun) -> bool:
    """Predict all scenes that are still missing in the folder; the work is shared by all processes.

    Returns:
        Whether this is the process that goes on with the predictions: rank 0.

    Raises:
        InputError: the model, the dataset or the settings cannot be used, the folder holds another run, or
            scenes failed: the message names them, and all others are kept.
    """
    with run.processes() as (state, device):
        _predict_share(run, state, device)
    return state.is_main_process


def _predict_share(run: PredictionRun, state: PartialState, device: str) -> None:
    subject, folder = Subject.load(run, device), PredictionFolder(run.out)

    def begin() -> tuple[dict[str, Any], list[str]]:
        described = _describe(run, subject, device)
        missing = folder.begin(described)
        subject.save(run.out)
        return described, missing

    # One listing for all, as each process would else see fresh files of the others.
    begun = from_main(state, begin)
    if begun is None:
        return
    described, missing = begun
    total, share = len(described["views"]), missing[state.process_index :: state.num_processes]
    is_timed = not shares_device(device)
    with shared_bar(state, "predicting", total, folder.count) as bar:
        for saved in _predictions(subject, run, described, share):
            folder.write(saved if is_timed else replace(saved, seconds=None))
            bar.update(folder.count() - bar.n)
    if state.is_main_process:
        said = (folder.read(scene_id, with_tensors=False) for scene_id in described["views"])
        failures = {each.scene_id: each.failure for each in said if each.failure is not None}
        if failures:
            reasons = "; ".join(f"{scene_id}: {reason}" for scene_id, reason in failures.items())
            raise InputError(
                f"{len(failures)} of {count_of(total, 'scene')} failed ({reasons}); the same command "
                "tries them again, hess evaluate --skip-failed leaves them out."
            )


def _predictions(
    subject: Subject, run: PredictionRun, described: dict[str, Any], scene_ids: Sequence[str]
) -> Iterator[SavedPrediction]:
    """What becomes of each scene; files of the next one are read while the model runs."""
    dataset = open_scenes(run.scenes, subject.model, described["num_views"] or 1)

    def load(scene_id: str) -> Scene:
        return load_views(
            dataset, scene_id, described["views"][scene_id], described["num_views"], run.selection.seed
        )

    with subject.attending(run.attention) as handle:
        for scene_id, loading in read_ahead(load, scene_ids):
            try:
                scene = loading.result()
            except InputError as error:  # a file is damaged, or shows nothing
                yield SavedPrediction(scene_id, failure=str(error).replace(f"{dataset.root}/", ""))
                continue
            prediction = predict(subject.model, scene, handle)
            saved = SavedPrediction.of(prediction, scene, run.cameras_only)
            yield saved if run.cameras_only else saved.with_photos(scene.images)


def _describe(run: PredictionRun, subject: Subject, device: str) -> dict[str, Any]:
    """The full configuration of a run with the views of its scenes, as JSON values."""
    attention, scores, gates = run.attention, subject.scores, subject.gates
    calibrated = [each for each in (scores, gates) if each is not None]
    dataset, views = run.choose_views(subject.model, calibrated, None, run.protocol.num_views)
    return {
        "format": FORMAT,
        "command": run.command,
        "model": describe_model(run.model, subject.model),
        "dataset": dataset.name,
        "dataset_settings": dataset.settings,
        "protocol": run.protocol.name,
        "num_views": run.selection.num_views or run.protocol.num_views,
        "seed": run.selection.seed,
        "sparsity": describe_sparsity(attention) if isinstance(attention, HeSSConfig) else None,
        "baseline": describe_baseline(attention, gates) if isinstance(attention, Baseline) else None,
        "scores": None if scores is None else describe_scores(scores),
        "gates": None if gates is None else describe_scores(gates),
        "cameras_only": run.cameras_only,
        **describe_machine(device),
        "views": views,
    }
