"""All metrics of one scene whose cameras and depth are known, in the scene's own unit."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .compare import Reference, align, compare
from .mvs import cloud_errors, depth_errors
from .pose import THRESHOLDS, auc, pair_errors, recall, rpe
from .predict import Prediction

NUM_POINTS = 10_000  # of either cloud whose distances are measured
HIGHER_IS_BETTER = ("auc", "rra", "rta", "delta")  # how the names of such metrics begin


def scene_metrics(
    prediction: Prediction, reference: Reference, num_points: int = NUM_POINTS
) -> dict[str, float]:
    """How far a prediction is from the ground truth; distances are in the reference's `unit`.

    Args:
        prediction: on the device of the reference.
        reference: ground truth, or another prediction.
        num_points: drawn from either cloud for accuracy and completeness, the same pixels every time.

    Returns:
        What `compare` says; `auc_3`, `_5`, `_15`, `_30`, `rra_...` and `rta_...` over the scene's pairs;
        `rpe_translation` (in the unit) and `rpe_rotation` (degrees), NaN where cameras lie on one line;
        `accuracy`, `completeness` and `chamfer` of the points after alignment pixel by pixel; `abs_rel` and
        `delta` of depth.
    """
    # Of a few cameras: a GPU would be asked for some four hundred steps on a handful of numbers.
    predicted, truth = prediction.extrinsics.cpu(), reference.extrinsics.cpu()
    errors = pair_errors(predicted, truth)
    return {
        **compare(prediction, reference),
        **pose_metrics(errors.pose, errors.rotation, errors.translation),
        **relative_metrics(predicted, truth, reference.unit),
        **_cloud_metrics(prediction, reference, num_points),
        **depth_errors(prediction.depth, reference.depth, reference.mask)._asdict(),
    }


def pose_metrics(pose: Tensor, rotation: Tensor, translation: Tensor) -> dict[str, float]:
    """`auc_τ`, `rra_τ` and `rta_τ` for each of `THRESHOLDS`, of errors [N] in degrees."""
    named = (("auc", auc, pose), ("rra", recall, rotation), ("rta", recall, translation))
    return {
        f"{name}_{threshold}": metric(errors, threshold)
        for name, metric, errors in named
        for threshold in THRESHOLDS
    }


def relative_metrics(predicted: Tensor, truth: Tensor, unit: float) -> dict[str, float]:
    """`rpe_translation` in a unit and `rpe_rotation` in degrees; NaN where no alignment of cameras exists."""
    try:
        error = rpe(predicted, truth)
    except ValueError:
        return {"rpe_translation": math.nan, "rpe_rotation": math.nan}
    return {"rpe_translation": error.translation / unit, "rpe_rotation": error.rotation}


@functools.lru_cache(maxsize=2)  # a sweep asks for the same again and again
def _drawn(count: int, num_points: int) -> tuple[Tensor, Tensor]:
    """Two independent draws of indices below `count`, [num_points] at most."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randperm(count, generator=generator)[:num_points].clone() for _ in range(2))
    return first, second


def _cloud_metrics(prediction: Prediction, reference: Reference, num_points: int) -> dict[str, float]:
    truth = reference.points[reference.mask]
    points = align(prediction, reference).apply(prediction.points[reference.mask].double())
    # Drawn apart, or each true point would find the very pixel that it belongs to.
    first, second = _drawn(len(truth), num_points)
    errors = cloud_errors(points[first.to(points.device)], truth[second.to(truth.device)])
    unit = reference.unit
    return {
        "accuracy": errors.accuracy / unit,
        "completeness": errors.completeness / unit,
        "chamfer": errors.chamfer / unit,
    }
