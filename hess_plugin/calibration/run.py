"""Calibration on many scenes: shared among processes, stopped and resumed at will, the same bytes always."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..backbones import find_backbone
from ..config import CalibrationConfig
from ..datasets import Dataset
from ..errors import InputError
from ..files import write_atomic
from ..gates import HeadGates, gate_name
from ..loading import fingerprint
from ..processes import from_main, process_state, shared_bar
from ..scores import ERRORS, HeadScores, ScoresInfo, trace_names
from ..tables import count_of
from .dense_attention import kernel_versions
from .fisher import check_dense
from .measuring import measure
from .records import ROOT, RecordFolder, SceneRecord, check_out
from .reproducible import reproducible
from .summary import bootstrap_interval

LOG_FILE = "calibration_log.json"  # what happened on each scene: beside the scores, since it differs by run


def calibrate(
    model: nn.Module,
    dataset: Dataset,
    config: CalibrationConfig,
    *,
    out: Path,
    resume: bool = False,
    skip_failed: bool = False,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> HeadScores | None:
    """Measure the traces of every scene, keep them in a file for each, and save the scores of all.

    Started as several processes (`accelerate launch`, torchrun), each measures its share of the scenes on
    the device that holds its model. The scores have the same bytes for any number of processes and after any
    number of interruptions, on one kind of device with the same software. A scene that cannot be measured
    does not keep the others from being measured first.

    Args:
        model: dense model of a known family.
        dataset: `config.num_scenes` of its scenes are drawn with `config.seed`.
        config: settings, written into the scores.
        out: folder for the scores and the records, seen by all processes.
        resume: go on with the records in `out`, if there are any: of a run that was stopped, or of a finished
            one with fewer or more scenes, whose scores are replaced. Scenes that failed are tried again.
        skip_failed: leave out scenes that fail, or failed before; the scores name them with their reasons.
        base_model: repository id or folder of the model, written into the scores.
        base_revision: its commit, likewise.

    Returns:
        The scores in the process of rank 0, which alone raises what concerns all; None in the others.

    Raises:
        InputError: `out` cannot be used or holds what would be lost, no scene is left, or scenes failed: the
            message names all of these, and what was measured is kept.
        ValueError: the model is of no known family or has sparse attention.
    """
    check_dense(model)
    find_backbone(model)  # of a known family, or an error before anything is made
    device = next(model.parameters()).device
    config = dataclasses.replace(config, precision=config.precision_on(device.type))
    state = process_state(device.type == "cpu")

    def begin() -> tuple[RecordFolder, list[str]]:
        check_out(out, resume)
        records = RecordFolder(out, _describe_run(model, dataset, config))
        return records, records.open(keep_failed=skip_failed)

    # One listing for all: a process that looked for itself would see fresh records of the others.
    begun = from_main(state, begin)
    if begun is None:
        return None
    records, missing = begun
    with reproducible(device):
        _measure_share(model, dataset, config, records, missing, state)
    if not state.is_main_process:
        return None
    measured = records.read_all()
    log = _describe_events(records, measured, dataset, state)
    _write_log(out, log)  # now, because it is wanted most where scenes failed
    scores = _assemble(model, dataset, config, measured, skip_failed, base_model, base_revision)
    if config.gates:
        _gates_of(measured, scores.info).save(out)
    records.close()
    scores.save(out)  # last, for they are the sign that nothing is missing
    if len(scores.info.scene_ids) > 1:
        low, high = bootstrap_interval(scores)
        _write_log(out, log | {"weights_95_percent": {"low": low.tolist(), "high": high.tolist()}})
    return scores


def _describe_run(model: nn.Module, dataset: Dataset, config: CalibrationConfig) -> dict[str, Any]:
    """All that decides the bits of the traces, as JSON values."""
    device, settings = next(model.parameters()).device, dataclasses.asdict(config)
    del settings["num_scenes"]  # the scenes themselves are listed
    del settings["camera_weight"]  # a recommendation: no trace depends on it
    return {
        "model": fingerprint(model),
        "device": device.type,
        "dataset": dataset.name,
        # Another tree may have the same scene ids. Links are not followed, so that data can move behind one.
        ROOT: None if dataset.root is None else os.path.abspath(dataset.root),
        "dataset_settings": dataset.settings,
        "config": settings,
        "versions": {name: version(name) for name in ("hess-plugin", "torch", "transformers")}
        | kernel_versions(device),
        "scene_ids": dataset.choose(config.num_scenes, config.seed),
    }


def _measure_share(
    model: nn.Module,
    dataset: Dataset,
    config: CalibrationConfig,
    records: RecordFolder,
    missing: Sequence[str],
    state: PartialState,
) -> None:
    """Measure this process's share of the missing scenes, then wait for all others."""
    total, share = len(records.scene_ids), missing[state.process_index :: state.num_processes]
    with shared_bar(state, "calibrating", total, records.count) as bar:
        for record in measure(model, dataset, share, config):
            records.write(record)
            bar.set_postfix_str(f"peak {record.peak_memory / 2**30:.1f} GiB", refresh=False)
            bar.update(records.count() - bar.n)  # scenes of all processes


def _assemble(
    model: nn.Module,
    dataset: Dataset,
    config: CalibrationConfig,
    measured: Sequence[SceneRecord],
    skip_failed: bool,
    base_model: str | None,
    base_revision: str | None,
) -> HeadScores:
    """The scores of all scenes that did not fail, in the order of the records."""
    failures = {record.scene_id: record.failure for record in measured if record.failure is not None}
    _check_failures(failures, len(measured), skip_failed)
    good = [record for record in measured if record.failure is None]
    info = ScoresInfo(
        **_describe_model(model),
        **_describe_scenes(dataset, good, failures),
        **_describe_settings(model, config),
        base_model=base_model,
        base_revision=base_revision,
    )
    names = trace_names(config.projections)
    return HeadScores({name: torch.stack([record.traces[name] for record in good]) for name in names}, info)


def _gates_of(measured: Sequence[SceneRecord], info: ScoresInfo) -> HeadGates:
    """The gate gradients of the scenes that are in the scores."""
    good = [record for record in measured if record.failure is None]
    return HeadGates({e: torch.stack([each.traces[gate_name(e)] for each in good]) for e in ERRORS}, info)


def _check_failures(failures: dict[str, str], num_scenes: int, skip_failed: bool) -> None:
    """InputError naming all scenes that failed, unless they may be skipped and others are left."""
    nothing_left = len(failures) == num_scenes
    if not failures or (skip_failed and not nothing_left):
        return
    reasons = "; ".join(f"{scene_id}: {reason}" for scene_id, reason in failures.items())
    advice = "--resume tries them again, --resume --skip-failed leaves them out; what was measured is kept"
    raise InputError(
        f"{len(failures)} of {count_of(num_scenes, 'scene')} failed ({reasons}); "
        f"{'nothing is left to calibrate on' if nothing_left else advice}."
    )


def _describe_model(model: nn.Module) -> dict[str, Any]:
    backbone = find_backbone(model)
    attentions = list(backbone.global_attentions(model).values())
    return {
        "backbone": backbone.name,
        "num_layers": len(attentions),
        "num_heads": backbone.num_heads(attentions[0]),
        "head_dim": backbone.head_dim(attentions[0]),
        "weights_sha256": backbone.weights_sha256(model),
    }


def _describe_scenes(
    dataset: Dataset, good: Sequence[SceneRecord], failures: dict[str, str]
) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_settings": dataset.settings,
        "scene_ids": tuple(record.scene_id for record in good),
        "view_ids": tuple(record.view_ids for record in good),
        "skipped": failures,
    }


def _describe_settings(model: nn.Module, config: CalibrationConfig) -> dict[str, Any]:
    """The settings, those that have a field of their own there and the rest together."""
    settings = dataclasses.asdict(config)
    del settings["num_scenes"]  # the scenes themselves are listed
    del settings["gates"]  # no trace depends on it
    if config.camera_weight is None:
        settings["camera_weight"] = find_backbone(model).camera_weight
    own = {name: settings.pop(name) for name in ("num_views", "seed", "camera_weight", "projections")}
    return own | {"calibration": settings}


def _describe_events(
    records: RecordFolder, measured: Sequence[SceneRecord], dataset: Dataset, state: PartialState
) -> dict[str, Any]:
    on_gpu = records.run["device"] == "cuda"
    return {
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name() if on_gpu else records.run["device"],
        "scenes": [record.described() for record in measured],
        "left_out": dataset.skipped,  # before any scene was drawn, as the annotations tell
        # The log lies beside scores that are given away; where the data lies is nobody's business.
        "run": {name: value for name, value in records.run.items() if name != ROOT},
    }


def _write_log(out: Path, log: dict[str, Any]) -> None:
    write_atomic(out / LOG_FILE, (json.dumps(log, indent=2, ensure_ascii=False) + "\n").encode())
