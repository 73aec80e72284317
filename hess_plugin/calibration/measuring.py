"""Scenes one after another: files read ahead, traces measured, and what goes wrong told apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import nn

from ..config import CalibrationConfig
from ..datasets import Dataset, Scene
from ..datasets.reading import read_ahead
from .fisher import scene_traces
from .records import SceneRecord


def measure(
    model: nn.Module, dataset: Dataset, scene_ids: Sequence[str], config: CalibrationConfig
) -> Iterator[SceneRecord]:
    """The record of each scene, in order. Files of the next scene are read while one is measured."""

    def load(scene_id: str) -> Scene:
        return dataset.load(scene_id, config.num_views, config.seed)

    for scene_id, loading in read_ahead(load, scene_ids):
        record = _measure(model, scene_id, loading, config)
        yield record if record.failure is None else _without_root(record, dataset)


def _measure(
    model: nn.Module, scene_id: str, loading: Future[Scene], config: CalibrationConfig
) -> SceneRecord:
    """The record of a scene. An unusable one is a ValueError by contract; all else is a bug, and stops."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        scene = loading.result()
        start = time.perf_counter()
        measured = scene_traces(model, scene, config)
    except ValueError as error:
        reason = " ".join(str(error).split()).removeprefix(f"scene {scene_id!r}: ")  # named beside it anyway
        return SceneRecord(scene_id, time.perf_counter() - start, _peak_memory(device), failure=reason)
    return SceneRecord(
        scene_id,
        time.perf_counter() - start,
        _peak_memory(device),
        view_ids=scene.view_ids,
        unusable_views=dict(scene.unusable_views),
        report=measured.report,
        traces=measured.traces,
    )


def _peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU since the last reset, else of the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _without_root(record: SceneRecord, dataset: Dataset) -> SceneRecord:
    """Where the data lies is nobody's business, but reasons are published with the scores."""
    return replace(record, failure=str(record.failure).replace(f"{dataset.root}/", ""))
