"""All settings on one scene: densities matched, predictions measured, what is known already left alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from ..baselines.choice import Baseline, apply_baseline
from ..config import HeSSConfig
from ..datasets import Scene
from ..errors import InputError
from ..evaluation.predict import predict
from ..evaluation.predictions import SavedPrediction
from ..evaluation.protocols import Protocol, measure
from ..evaluation.setup import describe_sparsity
from ..gates import HeadGates
from ..patch import HeSSHandle, apply_hess
from ..scores import HeadScores
from .baselines import baseline_config
from .matching import Matched, match_density
from .methods import BASELINE, Method
from .presets import Setting
from .records import SettingRecord


@dataclass(frozen=True)
class Bench:
    """What all scenes of a sweep are measured with."""

    model: nn.Module
    own_scores: HeadScores
    other_scores: HeadScores | None
    protocol: Protocol
    base: HeSSConfig = field(default_factory=HeSSConfig)  # what all settings share
    truth: Path | None = None  # root of DTU's official ground truth
    alignment: str = "cameras"
    gates: HeadGates | None = None  # of the heads, for pruning
    is_timed: bool = True  # whether seconds are kept: no other process has the device too
    _scores: dict[str, HeadScores] = field(default_factory=dict)  # by method

    def scores(self, method: Method) -> HeadScores:
        """The scores of a method, one object for all scenes, so that they are chosen and hashed once.

        They do not name their weights: whether they fit is known, and hashing these each time is a waste.
        """
        if method.name not in self._scores:
            scores = method.scores(self.own_scores, self.other_scores)
            assert scores is not None  # impossible settings were left out
            info = replace(scores.info, weights_sha256=None)
            self._scores[method.name] = HeadScores(scores.scene_traces, info)
        return self._scores[method.name]


@dataclass(frozen=True)
class Trial:
    """A setting on a scene: what is run, and by what its record is known again."""

    asked: dict[str, Any]  # all that decides the record, as JSON values
    config: HeSSConfig | Baseline | None  # before its density is matched; None: dense
    scores: HeadScores | None  # that a `HeSSConfig` reads
    target: float | None  # density to be met; None: whatever comes out


def warm_up(bench: Bench, scene: Scene) -> None:
    """Two passes that nobody times: the first ones on a GPU load kernels and choose algorithms."""
    predict(bench.model, scene)
    with apply_hess(bench.model, bench.own_scores, bench.base) as handle:
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
        is_baseline = setting.method.name == BASELINE
        target = targets.get(setting.level.name) if setting.level and not is_baseline else None
        trial = _trial(bench, scene, setting, target)
        record, name = known.get(setting.key), repr(trial.asked)
        is_new = record is None or record.asked != trial.asked or record.failure is not None
        if record is None or is_new:
            record = done.get(name) or _measure(bench, scene, trial)
        done[name] = record
        if setting.level and is_baseline:
            targets[setting.level.name] = record.density
        yield setting.key, record, is_new


def _trial(bench: Bench, scene: Scene, setting: Setting, target: float | None) -> Trial:
    views = {"views": list(scene.view_ids)}
    method = setting.method
    if setting.level is None:
        return Trial(views | {"dense": True}, None, None, None)
    config: HeSSConfig | Baseline
    if method.baseline is not None:
        # Its setting follows from the density, so there is nothing to search.
        scores, gates = None, bench.gates if method.baseline != "merging" else None
        config = baseline_config(setting, bench.base, bench.own_scores.info.num_layers, target)
        fingerprint = gates and gates.sha256
    else:
        scores = bench.scores(method)
        config = setting.level.config(method, scores, _shuffle_seed(scene), bench.base)
        fingerprint = scores.sha256 if config.allocation != "uniform" else None
    asked = views | {"config": _as_json(config), "scores": fingerprint, "target": target}
    return Trial(asked, config, scores, target)


def _shuffle_seed(scene: Scene) -> int:
    """Each scene sees another order of heads, the same in every sweep."""
    return int.from_bytes(sha256(scene.name.encode()).digest()[:4])


def _as_json(config: HeSSConfig | Baseline) -> dict[str, Any]:
    values = describe_sparsity(config) if isinstance(config, HeSSConfig) else asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _measure(bench: Bench, scene: Scene, trial: Trial) -> SettingRecord:
    matched = _match(bench, scene, trial)
    made, metrics, failure = matched.result, {}, None
    try:
        metrics = measure(bench.protocol, [made], bench.truth, bench.alignment).scenes[scene.name]
    except InputError as error:  # a prediction that cannot be measured: cameras in one place, NaN
        failure = str(error)
    return SettingRecord(
        asked=trial.asked,
        config=None if matched.config is None else _as_json(matched.config),
        density=matched.density,  # others are matched to it, measured or not
        target=trial.target,
        attempts=matched.attempts,
        seconds=made.seconds if bench.is_timed else None,
        peak_memory=made.peak_memory,
        metrics=metrics,
        failure=failure,
    )


def _match(bench: Bench, scene: Scene, trial: Trial) -> Matched[SavedPrediction]:
    def saved(handle: HeSSHandle | None) -> SavedPrediction:
        prediction = predict(bench.model, scene, handle, keep_on_device=True)
        return SavedPrediction.of(prediction, scene, bench.protocol.only_cameras)

    def run(config: HeSSConfig) -> tuple[float, SavedPrediction]:
        with apply_hess(bench.model, trial.scores, config) as handle:
            made = saved(handle)
        return made.density, made

    if trial.config is None:
        return Matched(None, 1.0, 1, saved(None))
    if not isinstance(trial.config, HeSSConfig):
        with apply_baseline(bench.model, trial.config, bench.gates) as handle:
            made = saved(handle)
        return Matched(trial.config, made.density, 1, made)
    if trial.target is None:
        density, made = run(trial.config)
        return Matched(trial.config, density, 1, made)
    return match_density(trial.config, trial.target, run)
