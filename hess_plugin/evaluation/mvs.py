"""Metrics of points and depth. They read numbers only, predicted and true."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry.neighbors import nearest_neighbors
from ..geometry.similarity import umeyama


def aligned_point_error(predicted: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Median distance of corresponding points after alignment by the best similarity, in units of truth.

    Predicted and true points correspond pixel by pixel, so a wrong pixel is not excused by a neighbour.

    Args:
        predicted: [..., 3], for example [V, height, width, 3].
        truth: [..., 3], of the same shape.
        mask: [...] bool, where both are known; points elsewhere are not read.

    Returns:
        The median; of an even number of points the mean of the two in the middle.

    Raises:
        ValueError: for shapes that differ, fewer than three points left by the mask, values there that are
            not finite, or points on one line.

    Example:
        A prediction at half the scale is perfect after alignment:

        >>> truth = torch.eye(3)
        >>> round(aligned_point_error(truth / 2, truth, torch.ones(3, dtype=torch.bool)), 6)
        0.0
    """
    if predicted.shape != truth.shape or truth.shape != (*mask.shape, 3) or mask.dtype != torch.bool:
        raise ValueError(
            "predicted and truth must be [..., 3] and mask [...] bool, got "
            f"{list(predicted.shape)}, {list(truth.shape)} and {list(mask.shape)} {mask.dtype}."
        )
    predicted, truth = predicted[mask].double(), truth[mask].double()
    aligned = umeyama(predicted, truth).apply(predicted)
    return _median((aligned - truth).norm(dim=-1))


class CloudErrors(NamedTuple):
    """How far two clouds are apart, in their unit."""

    accuracy: float  # mean distance of predicted points to the nearest true one
    completeness: float  # mean distance of true points to the nearest predicted one
    accuracy_median: float
    completeness_median: float
    normal_consistency: float  # mean |cos| of the normals of nearest points, both ways; NaN without normals

    @property
    def chamfer(self) -> float:
        """Mean of accuracy and completeness, as DTU tables have it under "overall"."""
        return (self.accuracy + self.completeness) / 2


def cloud_errors(
    predicted: Tensor, truth: Tensor, normals: tuple[Tensor, Tensor] | None = None
) -> CloudErrors:
    """Accuracy, completeness and normal consistency of clouds in one frame; every point counts.

    Args:
        predicted: [N, 3], N >= 1, finite.
        truth: [M, 3], M >= 1, finite.
        normals: of predicted and true points, [N, 3] and [M, 3], of any length but 0; their sign is ignored.

    Raises:
        ValueError: for other shapes, an empty cloud, or values that are not finite.

    Example:
        >>> square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
        >>> errors = cloud_errors(square + torch.tensor([0.0, 0, 0.25]), square)
        >>> errors.accuracy, errors.completeness, errors.chamfer
        (0.25, 0.25, 0.25)
    """
    to_truth, nearest_true = _nearest("predicted", predicted, "truth", truth)
    to_predicted, nearest_predicted = _nearest("truth", truth, "predicted", predicted)
    consistency = math.nan
    if normals is not None:
        ours, theirs = (_unit(name, n) for name, n in zip(("predicted", "true"), normals, strict=True))
        if ours.shape != predicted.shape or theirs.shape != truth.shape:
            raise ValueError(
                f"normals must be one per point, got {list(ours.shape)} and {list(theirs.shape)} for "
                f"{list(predicted.shape)} and {list(truth.shape)} points."
            )
        there = (ours * theirs[nearest_true]).sum(-1).abs().mean()
        back = (theirs * ours[nearest_predicted]).sum(-1).abs().mean()
        consistency = float(there + back) / 2
    return CloudErrors(
        float(to_truth.mean()),
        float(to_predicted.mean()),
        _median(to_truth),
        _median(to_predicted),
        consistency,
    )


class CutErrors(NamedTuple):
    """Mean of the distances below a cut-off, and what it leaves out."""

    mean: float  # NaN where nothing is below
    dropped: float  # share of points at the cut-off or beyond


def cut_distances(points: Tensor, reference: Tensor, cutoff: float) -> CutErrors:
    """Mean distance of points to the nearest reference point, over those nearer than `cutoff`.

    Distances beyond are left out, not clipped, as in DTU's official evaluation; so the dropped share belongs
    to the result.

    Args:
        points: [N, 3], N >= 1, finite.
        reference: [M, 3], M >= 1, finite.
        cutoff: in the clouds' unit, above 0.

    Raises:
        ValueError: for other shapes, an empty cloud, or values that are not finite.

    Example:
        >>> points = torch.tensor([[0.0, 0, 1], [0, 0, 3], [0, 0, 20]])
        >>> cut_distances(points, torch.zeros(1, 3), cutoff=20.0)
        CutErrors(mean=2.0, dropped=0.3333333333333333)
    """
    distances, _ = _nearest("points", points, "reference", reference)
    kept = distances[distances < cutoff]
    dropped = (len(distances) - len(kept)) / len(distances)
    return CutErrors(float(kept.mean()) if len(kept) else math.nan, dropped)


class DepthErrors(NamedTuple):
    """Errors of depth maps, after scaling."""

    abs_rel: float  # mean of |predicted - true| / true
    delta: float  # share of pixels where both ratios of predicted and true are below 1.25


def depth_errors(predicted: Tensor, truth: Tensor, mask: Tensor) -> DepthErrors:
    """Absolute relative error and δ < 1.25 of depth, scaled by one factor for all views of a scene.

    The factor is the ratio of the medians of true and predicted depth, since models predict no unit.

    Args:
        predicted: [...], for example [V, height, width]; a value that is not positive is wrong at any scale.
        truth: [...], positive under the mask.
        mask: [...] bool, where depth is known.

    Raises:
        ValueError: for shapes that differ, no pixel under the mask, values there that are not finite, or a
            median that is not positive.

    Example:
        >>> truth = torch.tensor([1.0, 2.0, 4.0])
        >>> depth_errors(torch.tensor([0.5, 1.0, 3.0]), truth, truth > 0)
        DepthErrors(abs_rel=0.16666666666666666, delta=0.6666666666666666)
    """
    if not predicted.shape == truth.shape == mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            "predicted, truth and mask must have one shape, got "
            f"{list(predicted.shape)}, {list(truth.shape)} and {list(mask.shape)} {mask.dtype}."
        )
    predicted, truth = predicted[mask].double(), truth[mask].double()
    if len(truth) == 0:
        raise ValueError("no depth is known under the mask, so nothing can be compared.")
    for name, values in (("predicted", predicted), ("true", truth)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} depth holds NaN or infinite values under the mask.")
        if not _median(values) > 0:
            raise ValueError(f"the median of the {name} depth is {_median(values)}, but must be positive.")
    scaled = predicted * (_median(truth) / _median(predicted))
    ratio = torch.maximum(scaled / truth, truth / scaled)
    close = (ratio < 1.25) & (scaled > 0)
    return DepthErrors(float(((scaled - truth).abs() / truth).mean()), float(close.double().mean()))


def _nearest(name: str, points: Tensor, other: str, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N] float64 of points [N, 3] to the nearest reference point, and its index."""
    for label, cloud in ((name, points), (other, reference)):
        if cloud.ndim != 2 or cloud.shape[-1] != 3 or len(cloud) == 0:
            raise ValueError(f"{label} must be [N, 3] with N >= 1, got {list(cloud.shape)}.")
        if not torch.isfinite(cloud).all():
            raise ValueError(f"{label} holds NaN or infinite values; leave those points out.")
    squared, index = nearest_neighbors(points.double(), reference.double())
    return squared.sqrt(), index


def _unit(name: str, normals: Tensor) -> Tensor:
    normals = normals.double()
    lengths = normals.norm(dim=-1, keepdim=True)
    if not (torch.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError(f"{name} normals hold NaN, infinite or zero vectors.")
    return normals / lengths


def _median(values: Tensor) -> float:
    """Of an even number of values the mean of the two in the middle."""
    ordered = values.sort().values
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
