"""The calibration command: names of a model and a dataset in, a sidecar out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..config import CalibrationConfig
from ..datasets import Dataset
from ..datasets.choice import DatasetChoice
from ..errors import InputError, input_errors
from ..loading import commit_of, load_model, memory_errors, open_scenes
from ..processes import from_main, process_device, process_state
from .records import check_out
from .run import LOG_FILE, calibrate
from .summary import format_reasons, format_summary


@dataclass(frozen=True)
class CalibrationRun:
    """What to calibrate on what, and where the scores go."""

    model: str  # folder or repository of a checkpoint
    dataset: str  # one of DATASETS
    out: Path  # folder for the sidecar
    root: Path | None = None  # of the dataset; None for "synthetic"
    model_class: str | None = None  # "module:name"; None finds the native class
    image_width: int | None = None  # pixels; None: the model's own
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset, see `DatasetChoice`
    config: CalibrationConfig = field(default_factory=CalibrationConfig)
    device: str | None = None  # None: this process's GPU, or the CPU where there is none
    resume: bool = False
    skip_failed: bool = False

    def __post_init__(self) -> None:
        _ = self.scenes  # checks them
        if self.config.truth == "cloud" and self.dataset == "synthetic":
            raise InputError("--truth cloud needs a dataset with point clouds, synthetic has none.")

    @property
    def scenes(self) -> DatasetChoice:
        """Where the scenes come from."""
        return DatasetChoice(self.dataset, self.root, self.image_width, self.options)


def run_calibration(run: CalibrationRun) -> None:
    """Calibrate the dense model, save the sidecar and print what it is worth.

    Raises:
        InputError: the model, the dataset or the settings cannot be used, or scenes failed.
    """
    state = process_state(cpu=run.device == "cpu" or not torch.cuda.is_available())
    device = process_device(run.device, state)
    if from_main(state, lambda: check_out(run.out, run.resume)):  # before the model is fetched
        with memory_errors(device, f"{run.config.num_views} views (--num-views) a scene"):
            _run(run, state, device)
    state.destroy_process_group()


def _run(run: CalibrationRun, state: PartialState, device: str) -> None:
    model = load_model(run.model, device, model_class=run.model_class)
    dataset = _open_dataset(run, model)
    if state.is_main_process:
        print(f"Processes: {state.num_processes} ({torch.device(device).type})", flush=True)
    with input_errors(ImportError):  # Open3D or Faiss, named with the extra that brings it
        scores = calibrate(
            model,
            dataset,
            run.config,
            out=run.out,
            resume=run.resume,
            skip_failed=run.skip_failed,
            base_model=_published_name(run.model),
            base_revision=commit_of(run.model),
        )
    if scores is not None:
        print(format_summary(scores))
        print(f"\nScores: {run.out}/ (look at them with `hess inspect {run.out}`); by scene: {LOG_FILE}")
        if dataset.skipped:
            print(f"Before scenes were drawn, {format_reasons(dataset.skipped, LOG_FILE)}")


def _published_name(model: str) -> str:
    """A repository's id, of a folder its name alone: where it lies on this machine would be published."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _open_dataset(run: CalibrationRun, model: nn.Module) -> Dataset:
    more = {"with_cloud": True} if run.config.truth == "cloud" else {}
    return open_scenes(run.scenes, model, run.config.num_views, **more)
