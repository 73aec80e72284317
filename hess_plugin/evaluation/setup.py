"""What commands that run a model over scenes have in common: model, scores, views, and their description."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..backbones import find_backbone
from ..config import HeSSConfig
from ..datasets import Dataset, PhotoDataset, Scene
from ..datasets.choice import DatasetChoice
from ..datasets.co3d_protocols import Views
from ..errors import InputError
from ..gates import HeadGates
from ..loading import (
    EMBEDDED_MODEL,
    commit_of,
    fingerprint,
    load_model,
    memory_errors,
    open_scenes,
)
from ..processes import process_device, process_state
from ..scores import HeadScores
from ..sidecar import Sidecar, resolve
from .protocols import Protocol, Selection, protocol_for


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """A model, the scenes that it runs over, and where results go.

    Raises:
        InputError: something that does not fit, found out before anything is loaded.
    """

    out: Path
    dataset: str  # one of DATASETS
    root: Path | None = None
    image_width: int | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset, see `DatasetChoice`
    model: str = str(EMBEDDED_MODEL)  # folder or repository of a checkpoint
    model_class: str | None = None
    hess: str | None = None  # scores: alias, folder or repository; None: beside the weights
    protocol_name: str | None = None  # None: that of the dataset
    selection: Selection = field(default_factory=Selection)
    device: str | None = None  # None: this process's GPU, or the CPU where there is none
    command: str  # as it was called, for people

    def __post_init__(self) -> None:
        _ = self.scenes  # checks them

    @property
    def protocol(self) -> Protocol:
        """Which views are taken, and what is measured."""
        return protocol_for(self.protocol_name, self.dataset)

    @property
    def scenes(self) -> DatasetChoice:
        """Where the scenes come from."""
        options = self.protocol.options | self.options
        return DatasetChoice(self.dataset, self.root, self.image_width, options)

    def choose_views(
        self,
        model: nn.Module,
        calibrated: Sequence[HeadScores | HeadGates],
        num_scenes: int | None,
        num_views: int | None,
    ) -> tuple[Dataset, Views | dict[str, None]]:
        """The opened dataset, and the scenes with their views; the numbers are for where none are set.

        Scenes that a calibration of the scores or gates drew are left out.
        """
        asked = self.options.get("categories")
        selection = replace(
            exclude_calibrated(self.selection, self.dataset, calibrated),
            num_scenes=self.selection.num_scenes or num_scenes,
            num_views=self.selection.num_views or num_views,
            categories=asked.split(",") if asked else None,
        )
        dataset = open_scenes(self.scenes, model, selection.num_views or 1)
        return dataset, self.protocol.choose(dataset, selection)

    @contextmanager
    def processes(self) -> Iterator[tuple[PartialState, str]]:
        """This process among those launched, and its device; memory that runs out becomes one line."""
        state = process_state(cpu=self.device == "cpu" or not torch.cuda.is_available())
        device = process_device(self.device, state)
        with memory_errors(device, f"{self.selection.num_views or 'so many'} views (--num-views) a scene"):
            yield state, device
        state.destroy_process_group()


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
) -> tuple[nn.Module, Sidecar | None]:
    """The dense model and its sidecar; this first, as bad names should fail at once.

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
    return load_model(name, device, model_class=model_class), sidecar


def exclude_calibrated(
    selection: Selection, dataset: str, calibrated: Sequence[HeadScores | HeadGates]
) -> Selection:
    """The selection without scenes of this dataset that scores or gates were calibrated on.

    Scenes that the calibration drew and refused are left out too: they were chosen for being hard.
    """
    infos = [each.info for each in calibrated if each.info.dataset == dataset]
    ids = {scene for info in infos for scene in (*info.scene_ids, *info.skipped)}
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


def describe_scores(calibrated: HeadScores | HeadGates) -> dict[str, Any]:
    """What tells scores, or gates, from others."""
    return {
        "dataset": calibrated.info.dataset,
        "num_scenes": len(calibrated.info.scene_ids),
        "sha256": calibrated.sha256,
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
