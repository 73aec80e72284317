"""Similarity transforms and their least-squares estimate from corresponding points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Similarity:
    """Scale, rotation and translation between two frames: x_target = scale · rotation x_source + translation.

    Example:
        >>> double_and_shift = Similarity(torch.tensor(2.0), torch.eye(3), torch.tensor([0.0, 0.0, 1.0]))
        >>> double_and_shift.apply(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 4., 7.])
    """

    scale: Tensor  # [], positive
    rotation: Tensor  # [3, 3], proper: determinant +1
    translation: Tensor  # [3], in units of the target frame

    def apply(self, points: Tensor) -> Tensor:
        """Transform points [..., 3], in their own dtype and on their own device."""
        scale, rotation, translation = (
            part.to(points) for part in (self.scale, self.rotation, self.translation)
        )
        return scale * (points @ rotation.T) + translation


def umeyama(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Similarity:
    """Similarity that brings `source` onto `target` with the least (weighted) sum of squared distances.

    Umeyama's closed form, in float64. The rotation is always proper: for mirrored input it is the best
    rotation, not the reflection. Planar points are enough; points on one line leave the turn about it open.

    Args:
        source: [N, 3], N >= 3.
        target: [N, 3], row i corresponds to row i of `source`.
        weights: [N], not negative; None weights all points alike.

    Returns:
        A float64 `Similarity` on the device of `source`.

    Raises:
        ValueError: for fewer than three points, values that are not finite, or points on one line.

    Example:
        >>> corners = torch.eye(3)
        >>> umeyama(corners, 3 * corners + 1).scale.round(decimals=6)
        tensor(3., dtype=torch.float64)
    """
    weights = _checked_weights(source, target, weights)
    source_mean, source_cov = _moments(source.double(), weights)
    target_mean, target_cov = _moments(target.double(), weights)
    _check_spread("source", source, source_cov)
    _check_spread("target", target, target_cov)
    centered_source, centered_target = source.double() - source_mean, target.double() - target_mean
    cross_cov = (weights[:, None] * centered_target).T @ centered_source
    # Of nine numbers: a GPU would take a hundred times as long for the decomposition as for the sums above.
    u, singular_values, v_t = torch.linalg.svd(cross_cov.cpu())
    signs = torch.ones_like(singular_values)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(v_t))
    rotation = (u @ torch.diag(signs) @ v_t).to(source.device)
    scale = (singular_values * signs).sum().to(source.device) / source_cov.trace()
    return Similarity(scale, rotation, target_mean - scale * (rotation @ source_mean))


def _checked_weights(source: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Weights [N] float64 that sum to 1, after checking everything that goes into the fit."""
    if source.ndim != 2 or source.shape[-1] != 3 or source.shape != target.shape:
        raise ValueError(
            f"source and target must both be [N, 3], got {list(source.shape)} and {list(target.shape)}."
        )
    weights = source.new_ones(len(source)) if weights is None else weights
    if weights.shape != source.shape[:1]:
        raise ValueError(f"weights must be [N] = [{len(source)}], got {list(weights.shape)}.")
    for name, values in (("source", source), ("target", target), ("weights", weights)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave those points out.")
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, got {weights.min().item()}.")
    count = int((weights > 0).sum())
    if count < 3:
        raise ValueError(f"a similarity needs at least 3 points of positive weight, got {count}.")
    return weights.double() / weights.double().sum()


def _moments(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean [3] and covariance [3, 3]."""
    mean = weights @ points
    centered = points - mean
    return mean, (weights[:, None] * centered).T @ centered


def _check_spread(name: str, points: Tensor, covariance: Tensor) -> None:
    """Refuse points that lie on one line (or in one place) to within a millionth or their own rounding."""
    variances = torch.linalg.eigvalsh(covariance.cpu())  # ascending
    rounding = torch.finfo(points.dtype).eps * points.abs().max().double().cpu()
    if variances[1] <= torch.maximum(1e-12 * variances[2], rounding**2):
        raise ValueError(
            f"{name} points lie on one line or in one place, so no rotation can be told from them; "
            "a similarity needs at least 3 points that span a plane."
        )
