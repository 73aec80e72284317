"""Camera pose metrics. They read numbers only: world-to-camera extrinsics, predicted and true."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry.cameras import camera_centers, invert_rigid, rotation_to_quaternion
from ..geometry.similarity import umeyama


class PairErrors(NamedTuple):
    """Errors of the relative poses of all pairs of views i < j, in degrees, [V (V - 1) / 2] float64."""

    rotation: Tensor  # in [0, 180]
    translation: Tensor  # of the direction, sign ignored, in [0, 90]

    @property
    def pose(self) -> Tensor:
        """The larger of both, the error that `auc` is taken of."""
        return torch.maximum(self.rotation, self.translation)


def pair_errors(predicted: Tensor, truth: Tensor) -> PairErrors:
    """Errors of relative poses, as VGGT's CO3Dv2 script defines them; neither frame nor scale matters.

    The relative pose of a pair is E_i E_j⁻¹. Its rotations are compared by the angle between them, its
    translations by the angle between their directions, where t and -t count as equal.

    Args:
        predicted: [V, 3, 4], world to camera, V >= 2.
        truth: [V, 3, 4], world to camera, the same views in the same order.

    Raises:
        ValueError: for other shapes, fewer than two views, or values that are not finite.

    Example:
        Two cameras looking along +z; the second is predicted too far up instead of to the right:

        >>> truth, predicted = torch.eye(3, 4).repeat(2, 1, 1), torch.eye(3, 4).repeat(2, 1, 1)
        >>> truth[1, 0, 3], predicted[1, 1, 3] = -1.0, 5.0
        >>> pair_errors(predicted, truth).translation.round()
        tensor([90.], dtype=torch.float64)
    """
    _check_extrinsics(predicted, truth, min_views=2)
    first, second = torch.triu_indices(len(truth), len(truth), offset=1, device=truth.device)
    quaternions, directions = [], []
    for extrinsics in (predicted.double(), truth.double()):
        rigid = torch.eye(4, dtype=torch.float64, device=extrinsics.device).repeat(len(extrinsics), 1, 1)
        rigid[:, :3] = extrinsics
        relative = rigid[first] @ invert_rigid(rigid[second])
        quaternions.append(rotation_to_quaternion(relative[:, :3, :3]))
        directions.append(relative[:, :3, 3] / (relative[:, :3, 3].norm(dim=-1, keepdim=True) + 1e-15))
    # 1e-15 keeps rounding inside the arc cosine's domain, as the script does.
    apart = (1 - (quaternions[0] * quaternions[1]).sum(-1).square()).clamp(min=1e-15)
    rotation = torch.arccos(1 - 2 * apart)
    apart = (1 - (directions[0] * directions[1]).sum(-1).square()).clamp(min=1e-15)
    translation = torch.arccos(torch.sqrt(1 - apart))
    return PairErrors(rotation.rad2deg(), translation.rad2deg())


def auc(errors: Tensor, threshold: int) -> float:
    """Area under the recall curve up to `threshold` degrees, in [0, 1], by VGGT's histogram.

    Each error falls into a bin [b, b + 1), the last one closed, and counts (threshold - b) / threshold;
    errors above the threshold count 0. So an error below one degree counts as perfect, and the result lies
    above the integral of the recall curve by about 0.5 / threshold. It is no trapezoidal rule.

    Args:
        errors: [N] degrees, pooled over all pairs that the curve is taken of; infinite is allowed.
        threshold: whole degrees.

    Raises:
        ValueError: for no errors, NaN or negative ones, or a threshold that is not a positive integer.

    Example:
        >>> auc(torch.tensor([0.9, 1.0, 29.5, 30.0, 31.0]), 30)  # (30 + 29 + 1 + 1 + 0) / (5 · 30)
        0.4066666666666666
    """
    if not isinstance(threshold, int) or threshold < 1:
        raise ValueError(f"threshold must be a whole number of degrees, at least 1, got {threshold!r}.")
    if errors.ndim != 1 or len(errors) == 0:
        raise ValueError(f"errors must be [N] with N >= 1, got {list(errors.shape)}.")
    if not (errors >= 0).all():
        raise ValueError("errors hold NaN or negative values; they must be angles in degrees.")
    errors = errors.double()
    credit = torch.where(errors == threshold, 1, (threshold - errors.floor()).clamp(min=0))
    return (credit.mean() / threshold).item()


def ate(predicted: Tensor, truth: Tensor) -> float:
    """Absolute trajectory error: root mean square distance of aligned camera centres, in units of truth.

    The predicted centres -Rᵀt are brought onto the true ones by the best similarity (rotation, translation
    and scale: Sim(3)), as evo does with `align=True, correct_scale=True`.

    Args:
        predicted: [V, 3, 4], world to camera, V >= 3: a similarity fits any two centres without error.
        truth: [V, 3, 4], world to camera, the same views in the same order.

    Raises:
        ValueError: for other shapes, fewer than three views, values that are not finite, or centres in line.
    """
    _check_extrinsics(predicted, truth, min_views=3)
    centers, true_centers = camera_centers(predicted.double()), camera_centers(truth.double())
    aligned = umeyama(centers, true_centers).apply(centers)
    return (aligned - true_centers).square().sum(-1).mean().sqrt().item()


def _check_extrinsics(predicted: Tensor, truth: Tensor, min_views: int) -> None:
    if predicted.shape != truth.shape or truth.ndim != 3 or truth.shape[1:] != (3, 4):
        raise ValueError(
            f"predicted and truth must be [V, 3, 4], got {list(predicted.shape)} and {list(truth.shape)}."
        )
    if len(truth) < min_views:
        raise ValueError(f"at least {min_views} views are needed here, got {len(truth)}.")
    for name, extrinsics in (("predicted", predicted), ("truth", truth)):
        if not torch.isfinite(extrinsics).all():
            raise ValueError(f"{name} extrinsics hold NaN or infinite values.")
