"""What commands that run a model over scenes have in common: model, scores, views, and their description."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbones import find_backbone
from ..config import HeSSConfig
from ..datasets import Dataset, PhotoDataset, Scene
from ..errors import InputError
from ..loading import commit_of, fingerprint, load_model
from ..scores import HeadScores
from ..scores_io import traces_sha256
from ..sidecar import resolve
from .protocols import Selection


def load_views(
    dataset: Dataset, scene_id: str, view_ids: list[str] | None, num_views: int | None, seed: int
) -> Scene:
    """A scene with the views of a protocol, or with views drawn by seed."""
    if view_ids is None:
        return dataset.load(scene_id, num_views, seed)
    assert isinstance(dataset, PhotoDataset)
    return dataset.load_views(scene_id, view_ids)


def load_for(
    name: str, model_class: str | None, hess: Any, needed: bool, device: str
) -> tuple[nn.Module, HeadScores | None]:
    """The dense model and its scores; these first, as bad names should fail at once.

    A run that needs no scores knows by them which scenes to leave out, so that its scenes are those of runs
    that do. It may have none, if none were named.

    Args:
        name: folder or repository of the model.
        model_class: see `load_model`.
        hess: every form of `hess=`; None takes the scores beside the weights.
        needed: whether the run needs scores.
        device: of the model.
    """
    try:
        sidecar = resolve(True if hess is None else hess, base=name)
    except InputError:
        if needed or hess is not None:
            raise
        sidecar = None
    return load_model(name, device, model_class=model_class), None if sidecar is None else sidecar.scores


def exclude_calibrated(selection: Selection, dataset: str, scores: Sequence[HeadScores]) -> Selection:
    """The selection without scenes that scores were calibrated on, if they are of the same dataset."""
    ids = {scene for each in scores if each.info.dataset == dataset for scene in each.info.scene_ids}
    return replace(selection, excluded=tuple(sorted(ids)))


def describe_model(name: str, model: nn.Module) -> dict[str, Any]:
    """Which weights: a repository's id and commit, of a folder its name alone; and their fingerprint."""
    is_folder = Path(name).is_dir()
    return {
        "name": Path(name).resolve().name if is_folder else name,
        "revision": None if is_folder else commit_of(name),
        "family": find_backbone(model).name,
        "sha256": fingerprint(model),
    }


def describe_sparsity(config: HeSSConfig) -> dict[str, Any]:
    """All settings but where the scores lie."""
    values = dataclasses.asdict(replace(config, scores=True))
    return {name: value for name, value in values.items() if name != "scores"}


def describe_scores(scores: HeadScores) -> dict[str, Any]:
    """What tells scores from others."""
    return {
        "dataset": scores.info.dataset,
        "num_scenes": len(scores.info.scene_ids),
        "sha256": traces_sha256(scores.scene_traces),
    }


def describe_machine(device: str) -> dict[str, Any]:
    """What decides the last bits and the seconds."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "precision": "bfloat16 autocast" if on_gpu else "float32",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("hess-plugin", "torch", "transformers")},
    }
