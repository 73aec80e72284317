"""What a page shows of a scene: what each method made of it, how far off it is, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from ..datasets.scene import Scene
from ..evaluation.compare import Reference, align, compare
from ..evaluation.predict import Prediction
from ..plots import PointCloud, clean_mask, colored_cloud, frustums, stability
from ..plots.point_cloud import move_cameras

NAMES = {
    "ground_truth": "Ground truth", "dense": "Dense", "uniform": "Uniform", "hess": "HeSS",
    "michel": "Pruning (Michel)", "kwon": "Pruning (Kwon)", "merging": "Token merging",
}  # fmt: skip
TRUTH = "ground_truth"
FRUSTUM_LENGTH = 0.08  # in the reference's unit
# Columns of a table: key of the metrics (see `compare`), heading, number format.
GROUND_TRUTH_COLUMNS = (
    ("auc_30", "AUC@30", ".3f"),
    ("ate", "ATE", ".4f"),
    ("point_error", "point error", ".4f"),
)
DENSE_COLUMNS = (("pose_error", "pose (deg)", ".2f"), *GROUND_TRUTH_COLUMNS[1:])
RUN_COLUMNS = (("density", "density", ".4f"), ("seconds", "seconds", ".2f"))
DISTANCE_NOTE = (
    "ATE and point error are after alignment; 1 is the mean distance of the points from the first camera."
)


@dataclass(frozen=True)
class SceneResult:
    """One scene: what each method made of it, and how far that is from the reference."""

    scene: Scene
    reference: Reference
    predictions: Mapping[str, Prediction]  # by method
    metrics: Mapping[str, dict[str, float]]  # by method; see `compare`

    @classmethod
    def of(cls, scene: Scene, reference: Reference, predictions: Mapping[str, Prediction]) -> Self:
        """The result with its metrics."""
        metrics = {method: compare(each, reference) for method, each in predictions.items()}
        return cls(scene, reference, predictions, metrics)

    @property
    def kind(self) -> str:
        """Scenes of one kind share a table."""
        return "synthetic" if self.scene.name.startswith("synthetic") else self.scene.name

    @property
    def columns(self) -> tuple[tuple[str, str, str], ...]:
        """The metrics that say something about this scene."""
        return GROUND_TRUTH_COLUMNS if self.reference.is_ground_truth else DENSE_COLUMNS

    @property
    def shown(self) -> list[str]:
        """Methods to show, after ground truth where there is any."""
        return [*([TRUTH] if self.reference.is_ground_truth else []), *self.predictions]

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Every method that is shown, as `place` puts it; files, pictures and the page use the same."""
        return {method: place(self, method) for method in self.shown}

    def row(self, method: str) -> dict[str, float]:
        """All numbers of one method; NaN for seconds that are not known."""
        prediction = self.predictions[method]
        seconds = math.nan if prediction.seconds is None else prediction.seconds
        return self.metrics[method] | {"density": prediction.density, "seconds": seconds}


@dataclass(frozen=True)
class Placed:
    """A reconstruction in the frame and unit of its scene's reference."""

    cloud: PointCloud
    known: Tensor  # [N] bool: points of pixels of which the reference knows the point
    extrinsics: Tensor  # [V, 3, 4]
    intrinsics: Tensor  # [V, 3, 3]
    pyramids: Tensor  # [V, 5, 3]
    depth: Tensor  # [V, height, width], NaN where unknown


def shown_pixels(prediction: Prediction) -> Tensor:
    """Pixels [V, height, width] bool to show: clean ones that no more photos contradict than confirm."""
    keep = clean_mask(prediction.depth, prediction.confidence) & prediction.points.isfinite().all(dim=-1)
    judging = prediction.depth.where(keep, torch.nan)
    return keep & (stability(prediction.points, judging, prediction.extrinsics, prediction.intrinsics) >= 0)


def place(result: SceneResult, method: str) -> Placed:
    """A method's reconstruction, or with method "ground_truth" the reference itself, ready to be shown."""
    images, reference = result.scene.images, result.reference
    if method == TRUTH:
        depth, extrinsics, intrinsics = reference.depth, reference.extrinsics, reference.intrinsics
        depth = torch.where(reference.mask, depth, torch.nan)
        keep = reference.mask
        cloud = colored_cloud(images, reference.points, keep, extrinsics)
    else:
        prediction = result.predictions[method]
        similarity = align(prediction, reference)
        keep = shown_pixels(prediction)
        extrinsics, intrinsics = move_cameras(prediction.extrinsics, similarity), prediction.intrinsics
        cloud = colored_cloud(images, similarity.apply(prediction.points), keep, extrinsics)
        depth = prediction.depth * similarity.scale.float()
    size = (images.shape[-2], images.shape[-1])
    pyramids = frustums(extrinsics, intrinsics, size, FRUSTUM_LENGTH * reference.unit)
    return Placed(cloud, reference.mask[keep], extrinsics, intrinsics, pyramids, depth)
