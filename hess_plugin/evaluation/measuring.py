"""From saved predictions to numbers: per scene, per category, and over all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ..datasets.dtu_truth import read_ground_truth
from ..errors import input_errors
from .dtu import official_errors, pointmap_errors
from .pose import PairErrors, PairFrame, ate, pair_errors
from .predictions import SavedPrediction
from .scene_metrics import pose_metrics, relative_metrics, scene_metrics

Metrics = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """What a protocol says about a run; a metric that a scene has no value of is NaN there."""

    scenes: dict[str, Metrics]
    overall: Metrics
    categories: dict[str, Metrics] = field(default_factory=dict)
    pooled: Metrics = field(default_factory=dict)  # over the pairs of all scenes, by pose protocols


def measure_scenes(saved: Iterable[SavedPrediction]) -> Evaluation:
    """The "scene" protocol: all metrics of each scene, and their means over scenes."""
    scenes = {}
    for each in saved:
        with _about(each):
            scenes[each.scene_id] = scene_metrics(each.prediction, each.reference)
    return Evaluation(scenes, mean_metrics(scenes))


def measure_poses(saved: Iterable[SavedPrediction], frame: PairFrame, by_category: bool) -> Evaluation:
    """Pose protocols: curves are taken over all pairs of a group of scenes, never averaged over scenes.

    Args:
        saved: predictions; a scene's category is what stands before "/" in its id.
        frame: see `pair_errors`.
        by_category: whether the overall curve is the mean of those of the categories (VGGT), or that of the
            pairs of all scenes pooled (π³).

    Returns:
        AUC, RRA and RTA at `THRESHOLDS`; `ate` (in the dataset's unit) and RPE are means over scenes.
    """
    scenes: dict[str, Metrics] = {}
    errors: dict[str, PairErrors] = {}
    for each in saved:
        predicted, truth = (each.tensor(name).cpu() for name in ("extrinsics", "truth.extrinsics"))
        with _about(each):
            errors[each.scene_id] = pair_errors(predicted, truth, frame)
        try:
            distance = ate(predicted, truth)
        except ValueError:  # camera centres on one line
            distance = math.nan
        scenes[each.scene_id] = {
            **pose_metrics(*_pooled([errors[each.scene_id]])),
            "ate": distance,
            **relative_metrics(predicted, truth, unit=1.0),
        }
    members: dict[str, list[str]] = {}
    for scene_id in scenes:
        members.setdefault(scene_id.partition("/")[0], []).append(scene_id)
    categories = {name: _group(ids, scenes, errors) for name, ids in members.items()}
    pooled = _group(list(scenes), scenes, errors)
    return Evaluation(scenes, mean_metrics(categories) if by_category else pooled, categories, pooled)


def measure_dtu_pi3(saved: Iterable[SavedPrediction]) -> Evaluation:
    """π³'s protocol on DTU, mean over scans; see `pointmap_errors`."""
    scenes = {}
    for each in saved:
        with _about(each, ImportError):
            scenes[each.scene_id] = pointmap_errors(each.prediction, each.reference)
    return Evaluation(scenes, mean_metrics(scenes))


def measure_dtu_official(
    saved: Iterable[SavedPrediction], root: Path, alignment: Literal["cameras", "pixels"]
) -> Evaluation:
    """DTU's official protocol, mean over scans; `root` holds its ground truth; see `official_errors`."""
    scenes = {}
    for each in saved:
        with _about(each, ImportError):
            truth = read_ground_truth(root, int(each.scene_id.removeprefix("scan")))
            scenes[each.scene_id] = official_errors(each.prediction, each.reference, truth, alignment)
    return Evaluation(scenes, mean_metrics(scenes))


def mean_metrics(rows: Mapping[str, Metrics]) -> Metrics:
    """Mean of each metric over the rows that have a value; NaN where none has."""
    names = next(iter(rows.values()))
    known = {name: [row[name] for row in rows.values() if math.isfinite(row[name])] for name in names}
    return {name: math.fsum(values) / len(values) if values else math.nan for name, values in known.items()}


def _group(ids: Sequence[str], scenes: dict[str, Metrics], errors: dict[str, PairErrors]) -> Metrics:
    pooled = pose_metrics(*_pooled([errors[scene_id] for scene_id in ids]))
    return mean_metrics({scene_id: scenes[scene_id] for scene_id in ids}) | pooled


def _pooled(errors: Sequence[PairErrors]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pose, rotation and translation errors of all pairs of some scenes."""
    pose = torch.cat([each.pose for each in errors])
    return pose, torch.cat([e.rotation for e in errors]), torch.cat([e.translation for e in errors])


def _about(saved: SavedPrediction, *more: type[Exception]):  # type: ignore[no-untyped-def]
    """What a metric refuses becomes one line that names the scene."""
    return input_errors(ValueError, *more, prefix=f"scene {saved.scene_id!r}: ")
