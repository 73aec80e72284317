"""The command `hess sweep`: methods at equal density on many scenes, by any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from ..baselines.choice import read_gates
from ..config import HeSSConfig
from ..datasets import Scene
from ..datasets.reading import read_ahead
from ..errors import InputError, input_errors
from ..evaluation.setup import (
    ModelRun,
    describe_machine,
    describe_model,
    describe_scores,
    describe_sparsity,
    load_for,
    load_views,
)
from ..gates import HeadGates
from ..kernels.hess_attention import dense_below_tokens
from ..loading import open_scenes
from ..patch import apply_hess
from ..processes import from_main, shares_device, wait_for_all
from ..progress import ProgressBar
from ..scores import HeadScores
from ..sidecar import resolve
from ..tables import count_of
from .matching import TOLERANCE
from .measuring import Bench, measure_settings, warm_up
from .presets import Preset, Setting, chosen_settings, preset_named
from .records import FORMAT, SCORES, SettingRecord, SweepFolder

SHARED = ("q_block_size", "kv_block_size", "dense_layers", "dense_below_tokens", "backend")  # by all settings
FAILED = "failed"  # key of the record of a scene that could not be read


@dataclass(frozen=True, kw_only=True)
class SweepRun(ModelRun):
    """What to compare."""

    preset: str = "paper"
    gates: Path | None = None  # folder of `hess calibrate --gates`, for pruning; None: beside the scores
    methods: tuple[str, ...] | None = None  # None: all of the preset
    other_hess: str | None = None  # scores of another calibration set, for the method "swapped"
    base: HeSSConfig = field(default_factory=HeSSConfig)  # block sizes, backend, dense layers
    truth: Path | None = None  # root of DTU's official ground truth; None: the dataset's
    alignment: str = "cameras"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = list(chosen_settings(preset_named(self.preset), self.methods))  # checks them


def run_sweep(run: SweepRun) -> bool:
    """Measure all settings that are still missing in the folder, on all scenes.

    Returns:
        Whether this is the process that says so: rank 0.

    Raises:
        InputError: something given cannot be used, the folder holds another sweep, or scenes or settings
            failed: the message names them, and all others are kept.
    """
    with run.processes() as (state, device):
        if state.num_processes > 1 and torch.device(device).type == "cpu":
            torch.set_num_threads(1)  # processes share the cores
        _sweep_share(run, state, device)
    return state.is_main_process


def _sweep_share(run: SweepRun, state: PartialState, device: str) -> None:
    other = None if run.other_hess is None else _other_scores(run)
    model, sidecar = load_for(run.model, run.model_class, run.hess, True, device)
    assert sidecar is not None
    assert sidecar.scores is not None
    own = sidecar.scores
    run = replace(run, base=_resolved(run.base, device))
    gates = read_gates(run.gates, sidecar.folder, model)
    preset = preset_named(run.preset)
    settings = [
        setting
        for setting in chosen_settings(preset, run.methods)
        if setting.method.name == "dense" or setting.method.is_possible(own, other, gates)
    ]
    _check_scores(model, own, other, run.base)
    folder = SweepFolder(run.out)

    def begin() -> dict[str, Any]:
        described = _describe(run, preset, model, own, other, gates, settings, device)
        folder.begin(described)
        for name, scores in (("own", own), ("other", other)):
            if scores is not None:
                scores.save(run.out / SCORES / name)
        if gates is not None:
            gates.save(run.out / SCORES / "own")
        return described

    described = from_main(state, begin)
    if described is None:
        return
    if state.is_main_process:
        print(_announcement(described, settings, preset, state), flush=True)
    truth, is_timed = run.truth or run.root, not shares_device(device)
    bench = Bench(model, own, other, run.protocol, run.base, truth, run.alignment, gates, is_timed)
    _measure_share(bench, run, described, settings, folder, state)
    wait_for_all(state)
    if state.is_main_process:
        _report_failures(folder, described)


def _measure_share(
    bench: Bench,
    run: SweepRun,
    described: dict[str, Any],
    settings: Sequence[Setting],
    folder: SweepFolder,
    state: PartialState,
) -> None:
    """Measure this process's share of the scenes; the bar is that of rank 0, whose share is the largest."""
    dataset = open_scenes(run.scenes, bench.model, described["num_views"] or 1)
    scenes = described["scenes"]
    share = list(scenes)[state.process_index :: state.num_processes]

    def load(scene_id: str) -> Scene:
        return load_views(dataset, scene_id, scenes[scene_id], described["num_views"], run.selection.seed)

    device = next(bench.model.parameters()).device
    is_cold = device.type == "cuda"
    total, hidden = len(share) * len(settings), not state.is_main_process
    with ProgressBar(total=total, desc="sweeping", unit="setting", disable=hidden) as bar:
        for scene_id, loading in read_ahead(load, share):
            records = folder.read(scene_id)
            try:
                scene = loading.result().to(device)
            except InputError as error:
                reason = str(error).replace(f"{dataset.root}/", "")
                folder.write(scene_id, records | {FAILED: SettingRecord({}, failure=reason)})
                bar.update(len(settings))
                continue
            if records.pop(FAILED, None) is not None:
                folder.write(scene_id, records)
            if is_cold:
                warm_up(bench, scene)
                is_cold = False
            with folder.kept(scene_id, records) as keep:
                for key, record, is_new in measure_settings(bench, scene, settings, records):
                    if is_new:
                        keep(key, record)
                    bar.set_postfix_str(f"{scene_id}, {key}", refresh=False)
                    bar.update()


def _other_scores(run: SweepRun) -> HeadScores | None:
    sidecar = resolve(run.other_hess, base=run.model)
    return None if sidecar is None else sidecar.scores


def _resolved(base: HeSSConfig, device: str) -> HeSSConfig:
    """With the number that "auto" means on this device, so that records say what ran."""
    if base.dense_below_tokens != "auto":
        return base
    return replace(base, dense_below_tokens=dense_below_tokens(torch.device(device)))


def _check_scores(model: nn.Module, own: HeadScores, other: HeadScores | None, base: HeSSConfig) -> None:
    """Refuse scores that are not for this model, before anything is measured."""
    for scores in filter(None, (own, other)):
        with input_errors(ValueError), apply_hess(model, scores, base):
            pass


def _describe(
    run: SweepRun,
    preset: Preset,
    model: nn.Module,
    own: HeadScores,
    other: HeadScores | None,
    gates: HeadGates | None,
    settings: Sequence[Setting],
    device: str,
) -> dict[str, Any]:
    """The full configuration, as JSON values."""
    protocol = run.protocol
    num_views = preset.num_views or protocol.num_views
    calibrated = [each for each in (own, other, gates) if each is not None]
    dataset, views = run.choose_views(model, calibrated, preset.num_scenes, num_views)
    return {
        "format": FORMAT,
        "commands": [run.command],
        "model": describe_model(run.model, model),
        "dataset": dataset.name,
        "dataset_settings": dataset.settings,
        "protocol": protocol.name,
        "about": protocol.about,
        "alignment": run.alignment if protocol.needs_root else None,
        "num_views": run.selection.num_views or num_views,
        "seed": run.selection.seed,
        "tolerance": TOLERANCE,
        "base": {k: v for k, v in describe_sparsity(run.base).items() if k in SHARED},
        **describe_machine(device),
        "scores": describe_scores(own),
        "other_scores": None if other is None else describe_scores(other),
        "gates": None if gates is None else gates.sha256,
        "scenes": views,
        "settings": [
            {"key": s.key, "method": s.method.name, "level": s.level and asdict(s.level)} for s in settings
        ],
    }


def _announcement(
    described: dict[str, Any], settings: Sequence[Setting], preset: Preset, state: PartialState
) -> str:
    """What is about to be measured, and what of the preset is left out."""
    there = {setting.method.name for setting in settings}
    missing = sorted({s.method.name for s in preset.settings()} - there)
    left_out = (
        f"; left out: {', '.join(missing)} (not asked for, or no such scores or gates)" if missing else ""
    )
    return (
        f"{count_of(len(described['scenes']), 'scene')} of {described['dataset']} x "
        f"{count_of(len(settings), 'setting')}, {count_of(state.num_processes, 'process')} "
        f"({described['device']}){left_out}"
    )


def _report_failures(folder: SweepFolder, described: dict[str, Any]) -> None:
    measured = {FAILED, *(setting["key"] for setting in described["settings"])}
    failures = {
        f"{scene_id}, {key}": record.failure
        for scene_id in described["scenes"]
        for key, record in folder.read(scene_id).items()
        if record.failure is not None and key in measured
    }
    if failures:
        first, reason = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} measurements failed, among them {first}: {reason}. Others are kept; the same "
            "command tries again, and reports say how many are missing."
        )
