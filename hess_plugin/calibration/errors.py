"""The two errors whose curvature scores the heads (section 3.2 of the paper), in normalised scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import Reconstruction
from ..config import CalibrationConfig
from ..datasets.scene import Scene
from ..geometry.cameras import camera_centers
from ..geometry.consensus import Alignment, AlignmentError
from ..geometry.faiss_index import FaissIndex
from ..geometry.neighbors import nearest_neighbors
from ..geometry.registration import align_by_features, refine_by_icp
from ..geometry.similarity import Similarity, umeyama
from .ground_truth import GroundTruth

# Points farther apart are no inliers of ICP, in units of the normalised scene: the tolerance of appendix B.2.
# Within inlier_radius, four times as wide, ICP fitted a small model's outliers and doubled the camera error.
ICP_RADIUS = 0.05


@dataclass(frozen=True)
class SceneErrors:
    """Both errors of a prediction, scalars with gradients, and what happened on the way to them."""

    camera: Tensor  # e_cam
    points: Tensor  # e_pc
    # camera_error, point_error: the values above; inlier_share: of the predicted points;
    # alignment_fitness, alignment_rmse: see `align`; recall: of the Faiss index, where one is used
    report: dict[str, float]


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


def align(
    points: Tensor, confident: Tensor, centers: Tensor, truth: GroundTruth, config: CalibrationConfig
) -> Alignment:
    """Similarity H from the prediction to the ground truth, a constant for gradients: sg(H) of Eq. 2 to 4.

    Where the ground truth has pixels, the predicted and the true point of a pixel belong together and give H
    by Umeyama. A cloud is aligned by FPFH features, with the cameras' spread as first guess of the scale.
    Then point-to-plane ICP refines H, if it brings the clouds nearer (`config.icp`; appendix B.1).

    That clouds lie on each other says little: what a model sees in noise, scaled to fit, lies near the truth.
    H is judged by what corresponds, points of pixels or else cameras: the share of their variance that it
    explains. Models that work reach 0.9, noise and wrong scenes 0.5 and less.

    Args:
        points: [V, height, width, 3], predicted.
        confident: [V, height, width] bool; the others take no part.
        centers: [V, 3], predicted camera positions.
        truth: of the same scene and, if it has pixels, image size.
        config: `icp`, `min_fitness`, `inlier_radius` and `seed` are read.

    Returns:
        H; the share of variance explained, 0 at the least; root mean square distance of what corresponds.

    Raises:
        AlignmentError: naming the scene, when H cannot be determined or explains less than `min_fitness`.
        ValueError: naming the scene, for predictions that are not finite or of another size.
    """
    _check_prediction(points, confident, centers, truth)
    points, centers = points.detach(), centers.detach()
    by_pixels = truth.points.ndim == 4
    chosen = confident & truth.mask if by_pixels else confident
    try:
        if by_pixels:
            transform = umeyama(points[chosen], truth.points[chosen])
        else:
            transform = _align_cloud(points[chosen], centers, truth, config.seed)
        if config.icp:
            transform = refine_by_icp(
                points[chosen], truth.known, transform, ICP_RADIUS, config.seed
            ).transform
    except ValueError as error:
        message = f"scene {truth.name!r}: it cannot be aligned to its ground truth: {error}"
        raise AlignmentError(message) from error
    if by_pixels:
        what, pairs = "known points", (points[chosen], truth.points[chosen])
    else:
        what, pairs = "cameras", (centers, truth.centers)
    return _judged(transform, *pairs, truth.name, what, config.min_fitness)


def _judged(
    transform: Similarity, source: Tensor, target: Tensor, scene: str, what: str, min_fitness: float
) -> Alignment:
    """The share of the variance of `target` that corresponding points explain; too little is an error."""
    squared = (transform.apply(source.double()) - target).square().sum(-1).mean()
    variance = (target - target.mean(0)).double().square().sum(-1).mean()
    fitness = max(0.0, 1 - float(squared / variance))
    if fitness < min_fitness:
        raise AlignmentError(
            f"scene {scene!r}: its alignment explains {fitness:.1%} of where the {what} are, min_fitness "
            f"asks for {min_fitness:.0%}; is the model trained for such scenes? Leave the scene out or lower "
            "min_fitness."
        )
    return Alignment(transform, fitness, float(squared.sqrt()))


def _check_prediction(points: Tensor, confident: Tensor, centers: Tensor, truth: GroundTruth) -> None:
    if truth.points.ndim == 4 and points.shape != truth.points.shape:
        raise ValueError(
            f"scene {truth.name!r}: predicted points are {list(points.shape)}, the ground truth is "
            f"{list(truth.points.shape)}; predict at the size of the scene's images."
        )
    if not (torch.isfinite(points[confident]).all() and torch.isfinite(centers).all()):
        raise ValueError(f"scene {truth.name!r}: predicted points or cameras hold NaN or infinite values.")


def _align_cloud(points: Tensor, centers: Tensor, truth: GroundTruth, seed: int) -> Similarity:
    """Coarse alignment to a cloud; it takes from the cameras only their spread and where they stand."""
    spreads = [(each - each.mean(0)).double().norm(dim=-1).mean().item() for each in (centers, truth.centers)]
    if min(spreads) < 1e-6:
        raise AlignmentError(
            f"the {'predicted' if spreads[0] < 1e-6 else 'known'} cameras stand in one place, so they do not "
            "tell the scale; truth='cloud' needs cameras that moved."
        )
    viewpoints = centers.mean(0), truth.centers.mean(0)
    found = align_by_features(
        points, truth.known, scale=spreads[1] / spreads[0], viewpoints=viewpoints, seed=seed
    )
    return found.transform


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


def point_error(
    points: Tensor, truth: GroundTruth, transform: Similarity, config: CalibrationConfig
) -> tuple[Tensor, dict[str, float]]:
    """Half the mean squared distance of aligned inlier points to the nearest true point, Eq. 3 and 4.

    A point is an inlier when a true point lies nearer than `inlier_radius`, the √ε of Eq. 3.

    Args:
        points: [J, 3], predicted, through which gradients flow; the choice of neighbours is constant.
        truth: of the same scene.
        transform: from `align`.
        config: `inlier_radius`, in units of the normalised scene, `neighbors` and `seed` are read.

    Returns:
        Scalar, in squared units of the normalised scene; and for the report the share of inliers and, with
        Faiss, the recall of its index.

    Raises:
        ValueError: naming the scene, when no point is an inlier.
    """
    aligned = transform.apply(points)
    known, fixed, report = truth.known, aligned.detach(), {}
    if config.neighbors == "faiss":
        index = FaissIndex(known, seed=config.seed)
        squared, nearest = index.nearest(fixed)
        report["recall"] = index.recall(fixed)
    else:
        squared, nearest = nearest_neighbors(fixed, known)
    inliers = squared < config.inlier_radius**2
    report["inlier_share"] = float(inliers.double().mean())
    if not inliers.any():
        raise ValueError(
            f"scene {truth.name!r}: none of {len(points)} predicted points lies within inlier_radius = "
            f"{config.inlier_radius:.4g} of the ground truth (nearest: {squared.min().sqrt().item():.4g}); "
            "is the model trained for such scenes? Leave the scene out or raise inlier_radius."
        )
    return (aligned[inliers] - known[nearest[inliers]]).square().sum(-1).mean() / 2, report


def calibration_errors(prediction: Reconstruction, scene: Scene, config: CalibrationConfig) -> SceneErrors:
    """Camera and point error of the prediction for one scene (batch size 1).

    The point error takes at most `max_points` of the confident points, drawn with `config.seed` on the CPU,
    so that the draw depends neither on the device nor on the scenes before.

    Raises:
        AlignmentError: naming the scene, when the prediction cannot be aligned well enough (`min_fitness`).
        ValueError: naming the scene, when it lacks ground truth, the prediction is not finite or of another
            size than the scene, or no predicted point is an inlier.
        ImportError: Open3D or Faiss is asked for and missing.
    """
    truth = GroundTruth.of(scene, config.truth)
    points, centers = prediction.points[0], camera_centers(prediction.extrinsics[0])
    confident = confident_pixels(prediction.confidence[0].detach(), config.min_confidence_quantile)
    alignment = align(points, confident, centers, truth, config)
    candidates = points[confident]
    generator = torch.Generator().manual_seed(config.seed)
    drawn = torch.randperm(len(candidates), generator=generator)[: config.max_points].to(points.device)
    camera = camera_error(centers, truth, alignment.transform)
    point, report = point_error(candidates[drawn], truth, alignment.transform, config)
    report |= {
        "camera_error": camera.item(),
        "point_error": point.item(),
        "alignment_fitness": alignment.fitness,
        "alignment_rmse": alignment.rmse,
    }
    return SceneErrors(camera, point, report)
