"""Camera pose metrics. They read numbers only: world-to-camera extrinsics, predicted and true."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..geometry.cameras import camera_centers, invert_rigid, rotation_to_quaternion
from ..geometry.similarity import Similarity, umeyama

THRESHOLDS = (3, 5, 15, 30)  # degrees, of AUC and recall
PairFrame = Literal["first", "second"]


class PairErrors(NamedTuple):
    """Errors of the relative poses of all pairs of views i < j, in degrees, [V (V - 1) / 2] float64."""

    rotation: Tensor  # in [0, 180]
    translation: Tensor  # of the direction, sign ignored, in [0, 90]

    @property
    def pose(self) -> Tensor:
        """The larger of both, the error that `auc` is taken of."""
        return torch.maximum(self.rotation, self.translation)


def pair_errors(predicted: Tensor, truth: Tensor, frame: PairFrame = "first") -> PairErrors:
    """Errors of relative poses, as VGGT's CO3Dv2 script defines them; neither world nor scale matters.

    The relative pose of a pair i < j is E_i E_j⁻¹. Its rotations are compared by the angle between them, its
    translations by the angle between their directions, where t and -t count as equal.

    Args:
        predicted: [V, 3, 4], world to camera, V >= 2.
        truth: [V, 3, 4], world to camera, the same views in the same order.
        frame: camera in whose axes directions are compared: that of "first" (VGGT), or of "second" with
            E_j E_i⁻¹ (π³). Rotations have the same angle in both.

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
    if frame == "second":
        first, second = second, first
    quaternions, directions = [], []
    for rigid in (_rigid(predicted), _rigid(truth)):
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
    errors = _checked_errors(errors)
    credit = torch.where(errors == threshold, 1, (threshold - errors.floor()).clamp(min=0))
    return (credit.mean() / threshold).item()


def recall(errors: Tensor, threshold: float) -> float:
    """Share of errors below `threshold` degrees: RRA of rotation errors, RTA of translation errors.

    Args:
        errors: [N] degrees; infinite is allowed.
        threshold: degrees, not included.

    Raises:
        ValueError: for no errors, NaN or negative ones.

    Example:
        >>> recall(torch.tensor([1.0, 4.9, 5.0, 60.0]), 5)
        0.5
    """
    return (_checked_errors(errors) < threshold).double().mean().item()


def _checked_errors(errors: Tensor) -> Tensor:
    if errors.ndim != 1 or len(errors) == 0:
        raise ValueError(f"errors must be [N] with N >= 1, got {list(errors.shape)}.")
    if not (errors >= 0).all():
        raise ValueError("errors hold NaN or negative values; they must be angles in degrees.")
    return errors.double()


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
    centers, true_centers = camera_centers(predicted.double()), camera_centers(truth.double())
    aligned = align_cameras(predicted, truth).apply(centers)
    return (aligned - true_centers).square().sum(-1).mean().sqrt().item()


class RelativePoseError(NamedTuple):
    """Root mean squares over pairs of consecutive views."""

    translation: float  # in units of truth
    rotation: float  # degrees


def rpe(predicted: Tensor, truth: Tensor) -> RelativePoseError:
    """Relative pose error from each view to the next, after Sim(3) alignment of the camera centres.

    As evo defines it with `delta=1`, `align=True, correct_scale=True`: with poses P (aligned prediction) and
    Q (truth), camera to world, the length and the angle of (Q_i⁻¹ Q_i+1)⁻¹ (P_i⁻¹ P_i+1). It depends on the
    order of the views.

    Args:
        predicted: [V, 3, 4], world to camera, V >= 3.
        truth: [V, 3, 4], world to camera, the same views in the same order.

    Raises:
        ValueError: as `ate`.
    """
    similarity = align_cameras(predicted, truth)
    poses, true_poses = (invert_rigid(_rigid(extrinsics)) for extrinsics in (predicted, truth))
    poses[:, :3, :3] = similarity.rotation @ poses[:, :3, :3]
    poses[:, :3, 3] = similarity.apply(poses[:, :3, 3])
    step, true_step = (invert_rigid(each[:-1]) @ each[1:] for each in (poses, true_poses))
    error = invert_rigid(true_step) @ step
    # Of a rotation R the norm of R - 1 is √8 sin(angle / 2): exact for small angles, unlike the trace.
    deviation = (error[:, :3, :3] - torch.eye(3).to(error)).flatten(1).norm(dim=-1)
    angles = 2 * torch.arcsin((deviation / 8**0.5).clamp(max=1))
    return RelativePoseError(
        error[:, :3, 3].square().sum(-1).mean().sqrt().item(),
        angles.rad2deg().square().mean().sqrt().item(),
    )


def align_cameras(predicted: Tensor, truth: Tensor) -> Similarity:
    """The similarity that brings the predicted camera centres onto the true ones; arguments as of `ate`."""
    _check_extrinsics(predicted, truth, min_views=3)
    return umeyama(camera_centers(predicted.double()), camera_centers(truth.double()))


def _rigid(extrinsics: Tensor) -> Tensor:
    """[V, 4, 4] float64 of extrinsics [V, 3, 4]."""
    rigid = torch.eye(4, dtype=torch.float64, device=extrinsics.device).repeat(len(extrinsics), 1, 1)
    rigid[:, :3] = extrinsics
    return rigid


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
