"""The two errors whose curvature scores the heads (section 3.2 of the paper), in normalised scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import Reconstruction
from ..config import CalibrationConfig
from ..datasets.scene import Scene
from ..geometry.cameras import camera_centers, unproject_depth
from ..geometry.neighbors import nearest_neighbors
from ..geometry.similarity import Similarity, umeyama


@dataclass(frozen=True)
class GroundTruth:
    """The known geometry of a scene, normalised.

    Convention: the first camera's centre is the origin, and the known points lie at distance 1 from it on
    average. This is VGGT's normalisation but for the turn into the first camera's axes, which no error can
    notice. It gives `inlier_radius` a unit in datasets whose own unit is arbitrary.
    """

    name: str  # of the scene, for messages
    centers: Tensor  # [V, 3] float32
    points: Tensor  # [V, height, width, 3] float32, meaningless outside `mask`
    mask: Tensor  # [V, height, width] bool

    @classmethod
    def of(cls, scene: Scene) -> GroundTruth:
        """Normalise the cameras and points of a scene; ValueError where it has none."""
        if not scene.has_ground_truth:
            raise ValueError(
                f"scene {scene.name!r} lacks cameras or depth; calibration needs scenes with ground truth."
            )
        if not scene.mask.any():
            raise ValueError(f"scene {scene.name!r} has no pixel of known depth; leave it out.")
        extrinsics, intrinsics, depth = scene.extrinsics, scene.intrinsics, scene.depth
        # float64, because a dataset's origin may be far away compared with the scene's size
        centers = camera_centers(extrinsics.double())  # type: ignore[union-attr]
        points = unproject_depth(depth.double(), extrinsics.double(), intrinsics.double())  # type: ignore[union-attr]
        points, centers = points - centers[0], centers - centers[0]
        scale = points[scene.mask].norm(dim=-1).mean()
        return cls(scene.name, (centers / scale).float(), (points / scale).float(), scene.mask)


def confident_pixels(confidence: Tensor, min_quantile: float) -> Tensor:
    """Pixels that are left when the share `min_quantile` of least confident ones is dropped.

    Args:
        confidence: [V, height, width], higher is better.
        min_quantile: share to drop, in [0, 1]; at least one pixel stays.

    Returns:
        bool mask of the same shape. Of equally confident pixels the later ones are dropped first.
    """
    keep = max(1, confidence.numel() - math.floor(min_quantile * confidence.numel()))
    best_first = confidence.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(confidence.numel(), dtype=torch.bool, device=confidence.device)
    mask[best_first[:keep]] = True
    return mask.view_as(confidence)


def align(points: Tensor, confident: Tensor, truth: GroundTruth) -> Similarity:
    """Similarity H from the prediction to the ground truth, a constant for gradients: sg(H) of Eq. 2 to 4.

    Umeyama on pixel correspondences: the predicted and the true point of one pixel belong together.

    Args:
        points: [V, height, width, 3], predicted.
        confident: [V, height, width] bool; the others take no part.
        truth: of the same scene and image size.

    Raises:
        ValueError: naming the scene, when too few pixels are left or the points do not determine H.
    """
    if points.shape != truth.points.shape:
        raise ValueError(
            f"scene {truth.name!r}: predicted points are {list(points.shape)}, the ground truth is "
            f"{list(truth.points.shape)}; predict at the size of the scene's images."
        )
    pixels = confident & truth.mask
    try:
        return umeyama(points.detach()[pixels], truth.points[pixels])
    except ValueError as error:
        raise ValueError(f"scene {truth.name!r} cannot be aligned to its ground truth: {error}") from error


def camera_error(centers: Tensor, truth: GroundTruth, transform: Similarity) -> Tensor:
    """Half the mean squared distance of aligned camera centres to the true ones, Eq. 2.

    Args:
        centers: [V, 3], predicted positions -Rᵀt, through which gradients flow.
        truth: of the same scene.
        transform: from `align`.

    Returns:
        Scalar, in squared units of the normalised scene.
    """
    return (transform.apply(centers) - truth.centers).square().sum(-1).mean() / 2


def point_error(points: Tensor, truth: GroundTruth, transform: Similarity, inlier_radius: float) -> Tensor:
    """Half the mean squared distance of aligned inlier points to the nearest true point, Eq. 3 and 4.

    A point is an inlier when a true point lies nearer than `inlier_radius`, the √ε of Eq. 3.

    Args:
        points: [J, 3], predicted, through which gradients flow; the choice of neighbours is constant.
        truth: of the same scene.
        transform: from `align`.
        inlier_radius: in units of the normalised scene.

    Returns:
        Scalar, in squared units of the normalised scene.

    Raises:
        ValueError: naming the scene, when predicted points are not finite or none is an inlier.
    """
    aligned = transform.apply(points)
    if not torch.isfinite(aligned).all():
        raise ValueError(f"scene {truth.name!r}: predicted points hold NaN or infinite values.")
    known = truth.points[truth.mask]
    squared, nearest = nearest_neighbors(aligned.detach(), known)
    inliers = squared < inlier_radius**2
    if not inliers.any():
        raise ValueError(
            f"scene {truth.name!r}: none of {len(points)} predicted points lies within inlier_radius = "
            f"{inlier_radius:.4g} of the ground truth (nearest: {squared.min().sqrt().item():.4g}); "
            "is the model trained for such scenes? Leave the scene out or raise inlier_radius."
        )
    return (aligned[inliers] - known[nearest[inliers]]).square().sum(-1).mean() / 2


def calibration_errors(
    prediction: Reconstruction, scene: Scene, config: CalibrationConfig
) -> dict[str, Tensor]:
    """Camera and point error of the prediction for one scene (batch size 1), scalars with gradients.

    The point error takes at most `max_points` of the confident points, drawn with `config.seed` on the CPU,
    so that the draw depends neither on the device nor on the scenes before.
    """
    truth = GroundTruth.of(scene)
    points = prediction.points[0]
    confident = confident_pixels(prediction.confidence[0].detach(), config.min_confidence_quantile)
    transform = align(points, confident, truth)
    candidates = points[confident]
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(candidates), generator=generator)[: config.max_points].to(points.device)
    return {
        "camera": camera_error(camera_centers(prediction.extrinsics[0]), truth, transform),
        "points": point_error(candidates[drawn], truth, transform, config.inlier_radius),
    }
