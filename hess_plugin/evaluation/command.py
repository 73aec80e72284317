"""The command `hess predict`: a model and scenes in, files of predictions out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from torch import nn

from ..config import HeSSConfig
from ..datasets import Dataset, Scene
from ..datasets.reading import read_ahead
from ..errors import InputError
from ..loading import open_scenes
from ..patch import apply_hess
from ..processes import from_main, shared_bar
from ..scores import HeadScores
from .predict import predict
from .predictions import FORMAT, SCORES, PredictionFolder, SavedPrediction
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

    sparsity: HeSSConfig | None = None  # None: dense; its `scores` are not read
    cameras_only: bool = False  # keep no points and depth


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
    needed = run.sparsity is not None and run.sparsity.allocation != "uniform"
    model, sidecar = load_for(run.model, run.model_class, run.hess, needed, device)
    scores = None if sidecar is None else sidecar.scores
    folder = PredictionFolder(run.out)

    def begin() -> tuple[dict[str, Any], list[str]]:
        num_views = run.protocol.num_views
        dataset, views = run.choose_views(model, [scores] if scores else [], None, num_views)
        described = _describe(run, model, scores, dataset, device) | {"views": views}
        missing = folder.begin(described)
        if scores is not None:
            scores.save(run.out / SCORES)
        return described, missing

    # One listing for all, as each process would else see fresh files of the others.
    begun = from_main(state, begin)
    if begun is None:
        return
    described, missing = begun
    dataset = open_scenes(run.scenes, model, described["num_views"] or 1)
    total, share = len(described["views"]), missing[state.process_index :: state.num_processes]
    with shared_bar(state, "predicting", total, folder.count) as bar:
        for saved in _predictions(model, scores, run, dataset, described, share):
            folder.write(saved)
            bar.update(folder.count() - bar.n)
    if state.is_main_process:
        said = (folder.read(scene_id, with_tensors=False) for scene_id in described["views"])
        failures = {each.scene_id: each.failure for each in said if each.failure is not None}
        if failures:
            reasons = "; ".join(f"{scene_id}: {reason}" for scene_id, reason in failures.items())
            raise InputError(
                f"{len(failures)} of {total} scenes failed ({reasons}); the same command tries them again, "
                "hess evaluate --skip-failed leaves them out."
            )


def _predictions(
    model: nn.Module,
    scores: HeadScores | None,
    run: PredictionRun,
    dataset: Dataset,
    described: dict[str, Any],
    scene_ids: Sequence[str],
) -> Iterator[SavedPrediction]:
    """What becomes of each scene; files of the next one are read while the model runs."""

    def load(scene_id: str) -> Scene:
        return load_views(
            dataset, scene_id, described["views"][scene_id], described["num_views"], run.selection.seed
        )

    sparse = nullcontext() if run.sparsity is None else apply_hess(model, scores, run.sparsity)
    with sparse as handle:
        for scene_id, loading in read_ahead(load, scene_ids):
            try:
                scene = loading.result()
            except InputError as error:  # a file is damaged, or shows nothing
                yield SavedPrediction(scene_id, failure=str(error).replace(f"{dataset.root}/", ""))
                continue
            prediction = predict(model, scene, handle)
            saved = SavedPrediction.of(prediction, scene, run.cameras_only)
            yield saved if run.cameras_only else saved.with_photos(scene.images)


def _describe(
    run: PredictionRun,
    model: nn.Module,
    scores: HeadScores | None,
    dataset: Dataset,
    device: str,
) -> dict[str, Any]:
    """The full configuration of a run but its views, as JSON values."""
    return {
        "format": FORMAT,
        "command": run.command,
        "model": describe_model(run.model, model),
        "dataset": dataset.name,
        "dataset_settings": dataset.settings,
        "protocol": run.protocol.name,
        "num_views": run.selection.num_views or run.protocol.num_views,
        "seed": run.selection.seed,
        "sparsity": None if run.sparsity is None else describe_sparsity(run.sparsity),
        "scores": None if scores is None else describe_scores(scores),
        "cameras_only": run.cameras_only,
        **describe_machine(device),
    }
