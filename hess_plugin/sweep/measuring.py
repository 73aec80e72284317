"""All settings on one scene: densities matched, predictions measured, what is known already left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from ..config import HeSSConfig
from ..datasets import Scene
from ..errors import InputError
from ..evaluation.predict import predict
from ..evaluation.predictions import SavedPrediction
from ..evaluation.protocols import Protocol, measure
from ..evaluation.setup import describe_scores, describe_sparsity
from ..gates import HeadGates
from ..patch import HeSSHandle, apply_hess
from ..scores import HeadScores
from .baselines import apply_baseline, baseline_config
from .matching import Matched, match_density
from .methods import BASELINE
from .presets import Setting
from .records import SettingRecord


@dataclass(frozen=True)
class Bench:
    """What all scenes of a sweep are measured with."""

    model: nn.Module
    scores: HeadScores
    other_scores: HeadScores | None
    protocol: Protocol
    base: HeSSConfig = field(default_factory=HeSSConfig)  # what all settings share
    truth: Path | None = None  # root of DTU's official ground truth
    alignment: str = "cameras"
    gates: HeadGates | None = None  # of the heads, for pruning


def warm_up(bench: Bench, scene: Scene) -> None:
    """Two passes that nobody times: the first ones on a GPU load kernels and choose algorithms."""
    predict(bench.model, scene)
    with apply_hess(bench.model, bench.scores, bench.base) as handle:
        predict(bench.model, scene, handle)


def measure_settings(
    bench: Bench, scene: Scene, settings: Sequence[Setting], known: dict[str, SettingRecord]
) -> Iterator[tuple[str, SettingRecord, bool]]:
    """The record of each setting, in order, and whether it is new.

    Settings that come to the same, such as λ = 0.5 where that is recommended, are measured once.

    Args:
        bench: model, scores and metrics.
        scene: on the device of the model.
        settings: of each level the baseline first.
        known: records of the scene that are there.
    """
    done: dict[str, SettingRecord] = {}  # by what was asked
    targets: dict[str, float] = {}  # by level
    for setting in settings:
        target = (
            targets.get(setting.level.name) if setting.level and setting.method.name != BASELINE else None
        )
        asked = _asked(bench, scene, setting, target)
        record = known.get(setting.key)
        is_new = record is None or record.asked != asked or record.failure is not None
        if record is None or is_new:
            record = done.get(repr(asked)) or _measure(bench, scene, setting, target, asked)
        done[repr(asked)] = record
        if setting.level and setting.method.name == BASELINE:
            targets[setting.level.name] = record.density
        yield setting.key, record, is_new


def _asked(bench: Bench, scene: Scene, setting: Setting, target: float | None) -> dict[str, Any]:
    """All that decides a record, as JSON values."""
    views = {"views": list(scene.view_ids)}
    if setting.level is None:
        return views | {"dense": True}
    if setting.method.baseline is not None:
        baseline = baseline_config(setting, bench.base, bench.scores.info.num_layers, target)
        gates = bench.gates if setting.method.baseline != "merging" else None
        return views | {"config": _as_json(baseline), "scores": gates and gates.sha256, "target": target}
    scores = setting.method.scores(bench.scores, bench.other_scores)
    assert scores is not None  # impossible settings were left out
    config = setting.level.config(setting.method, scores, _shuffle_seed(scene), bench.base)
    reads_scores = config.allocation != "uniform"
    return views | {
        "config": _as_json(config),
        "scores": describe_scores(scores)["sha256"] if reads_scores else None,
        "target": target,
    }


def _shuffle_seed(scene: Scene) -> int:
    """Each scene sees another order of heads, the same in every sweep."""
    return int.from_bytes(sha256(scene.name.encode()).digest()[:4])


def _as_json(config: Any) -> dict[str, Any]:
    values = describe_sparsity(config) if isinstance(config, HeSSConfig) else asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _measure(
    bench: Bench,
    scene: Scene,
    setting: Setting,
    target: float | None,
    asked: dict[str, Any],
) -> SettingRecord:
    matched = _match(bench, scene, setting, target)
    made, metrics, failure = matched.result, {}, None
    try:
        metrics = measure(bench.protocol, [made], bench.truth, bench.alignment).scenes[scene.name]
    except InputError as error:  # a prediction that cannot be measured: cameras in one place, NaN
        failure = str(error)
    return SettingRecord(
        asked=asked,
        config=None if setting.level is None else _as_json(matched.config),
        density=matched.density,  # others are matched to it, measured or not
        target=target,
        attempts=matched.attempts,
        seconds=made.seconds,
        peak_memory=made.peak_memory,
        metrics=metrics,
        failure=failure,
    )


def _match(bench: Bench, scene: Scene, setting: Setting, target: float | None) -> Matched[SavedPrediction]:
    def saved(handle: HeSSHandle | None) -> SavedPrediction:
        prediction = predict(bench.model, scene, handle, keep_on_device=True)
        return SavedPrediction.of(prediction, scene, bench.protocol.only_cameras)

    if setting.level is None:
        return Matched(bench.base, 1.0, 1, saved(None))
    if setting.method.baseline is not None:
        # Its setting follows from the density, so there is nothing to search.
        baseline = baseline_config(setting, bench.base, bench.scores.info.num_layers, target)
        with apply_baseline(bench.model, baseline, bench.gates) as handle:
            made = saved(handle)
        return Matched(baseline, made.density, 1, made)
    scores = setting.method.scores(bench.scores, bench.other_scores)
    assert scores is not None
    # Whether they fit the weights was found out once; hashing these again for each setting is a waste.
    scores = HeadScores(scores.scene_traces, replace(scores.info, weights_sha256=None))

    def run(config: HeSSConfig) -> tuple[float, SavedPrediction]:
        with apply_hess(bench.model, scores, config) as handle:
            made = saved(handle)
        return made.density, made

    config = setting.level.config(setting.method, scores, _shuffle_seed(scene), bench.base)
    if target is None:
        density, made = run(config)
        return Matched(config, density, 1, made)
    return match_density(config, target, run)
