"""How far a prediction is from a reference: ground truth, or the dense model's own reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import Tensor

from ..datasets.scene import Scene
from ..geometry.cameras import camera_centers
from ..geometry.similarity import Similarity, umeyama
from .mvs import aligned_point_error
from .pose import ate, auc, pair_errors
from .predict import Prediction


@dataclass(frozen=True)
class Reference:
    """What predictions are aligned to and measured against; conventions as in `Scene`."""

    extrinsics: Tensor  # [V, 3, 4], world to camera
    intrinsics: Tensor  # [V, 3, 3]
    points: Tensor  # [V, height, width, 3], world
    depth: Tensor  # [V, height, width]
    mask: Tensor  # [V, height, width] bool: pixels with a known point
    is_ground_truth: bool

    @classmethod
    def from_scene(cls, scene: Scene) -> Self:
        """The ground truth of a scene; ValueError names what is missing."""
        known = {name: getattr(scene, name) for name in ("extrinsics", "intrinsics", "depth")}
        return cls(**known, points=scene.world_points, mask=scene.mask, is_ground_truth=True)

    @classmethod
    def from_prediction(cls, prediction: Prediction) -> Self:
        """A prediction in the place of ground truth, all its pixels in front of their camera."""
        p = prediction
        return cls(p.extrinsics, p.intrinsics, p.points, p.depth, p.depth > 0, False)

    @cached_property
    def unit(self) -> float:
        """Mean distance of the known points from the first camera: VGGT's unit of length for a scene."""
        center = camera_centers(self.extrinsics[0])
        return float((self.points[self.mask] - center).norm(dim=-1).mean())


def align(prediction: Prediction, reference: Reference) -> Similarity:
    """The similarity that brings the predicted points onto the reference's, pixel by pixel."""
    return umeyama(prediction.points[reference.mask], reference.points[reference.mask])


def compare(prediction: Prediction, reference: Reference) -> dict[str, float]:
    """How far a prediction is from a reference; distances are in the reference's `unit`.

    Returns:
        `auc_30`: share of the area under the recall curve of pose errors up to 30 degrees; higher is better.
        `pose_error`: their median over all pairs of views, in degrees.
        `ate`: root mean square distance of camera centres, after Sim(3) alignment of the centres; NaN where
        they lie on one line and no such alignment exists.
        `point_error`: median distance of the points, pixel by pixel, after Sim(3) alignment of the points.
    """
    predicted, truth = prediction.extrinsics.cpu(), reference.extrinsics.cpu()  # few numbers in many steps
    errors = pair_errors(predicted, truth).pose
    try:
        distance = ate(predicted, truth)
    except ValueError:
        distance = math.nan
    return {
        "auc_30": auc(errors, 30),
        "pose_error": float(errors.median()),
        "ate": distance / reference.unit,
        "point_error": aligned_point_error(prediction.points, reference.points, reference.mask)
        / reference.unit,
    }
