"""Point error after alignment: closed forms, masks, an independent solver."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hess_plugin.evaluation.mvs import aligned_point_error


def turned(points: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled, turned by 90 degrees about z, shifted."""
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=points.dtype)
    return scale * points @ turn.T + torch.tensor([3.0, -1.0, 2.0], dtype=points.dtype)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("shape", [(3,), (2, 5, 7)])
def test_similar_clouds_agree(scale: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    truth = torch.randn(*shape, 3)
    error = aligned_point_error(turned(truth, scale), truth, torch.ones(shape, dtype=torch.bool))
    assert error == pytest.approx(0, abs=2e-5)  # float32 input


def test_known_distance_after_alignment() -> None:
    """Square (±1, ±1), true one stretched to (±1.5, ±1): best scale 1.25, each corner is off by √2/4."""
    square = torch.tensor([[-1.0, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]])
    stretched = square * torch.tensor([1.5, 1, 1])
    mask = torch.ones(4, dtype=torch.bool)
    assert aligned_point_error(turned(square, 3.0), stretched, mask) == pytest.approx(math.sqrt(2) / 4)


def test_median_of_offsets_far_fewer_than_points() -> None:
    """Many exact points pin the alignment down; three offsets among them leave the median at 0."""
    torch.manual_seed(1)
    truth = torch.randn(100_000, 3, dtype=torch.float64)
    predicted = truth.clone()
    predicted[:3] += torch.tensor([[3.0, 0, 0], [0, 4, 0], [0, 0, 12]]).double()
    assert aligned_point_error(predicted, truth, torch.ones(100_000, dtype=torch.bool)) < 1e-3


def test_masked_points_are_not_read() -> None:
    torch.manual_seed(2)
    truth, noise = torch.randn(2, 3, 4, 5, 3)
    mask = torch.rand(3, 4, 5) > 0.4
    predicted = truth + 0.1 * noise
    expected = aligned_point_error(predicted[mask], truth[mask], mask[mask])
    predicted[~mask], truth[~mask] = torch.nan, torch.inf
    assert aligned_point_error(predicted, truth, mask) == expected > 0


def kabsch_quaternion(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Aligned source by Horn's quaternion method: another solution of the same least-squares problem."""
    a, b = source - source.mean(0), target - target.mean(0)
    m = a.T @ b
    skew = np.array([m[1, 2] - m[2, 1], m[2, 0] - m[0, 2], m[0, 1] - m[1, 0]])
    n = np.zeros((4, 4))
    n[0, 0], n[0, 1:], n[1:, 0], n[1:, 1:] = np.trace(m), skew, skew, m + m.T - np.trace(m) * np.eye(3)
    w, x, y, z = np.linalg.eigh(n)[1][:, -1]
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    turned_a = a @ rotation.T
    return (turned_a * b).sum() / (a * a).sum() * turned_a + target.mean(0)


@pytest.mark.parametrize("count", [10, 63])
def test_equals_horns_method(count: int) -> None:
    torch.manual_seed(count)
    truth = torch.randn(count, 3, dtype=torch.float64)
    predicted = turned(truth, 0.3) + 0.2 * torch.randn(count, 3).double()
    distances = np.linalg.norm(kabsch_quaternion(predicted.numpy(), truth.numpy()) - truth.numpy(), axis=1)
    error = aligned_point_error(predicted, truth, torch.ones(count, dtype=torch.bool))
    assert error == pytest.approx(np.sort(distances)[(count - 1) // 2 : count // 2 + 1].mean())


CLOUD = torch.eye(3).repeat(2, 1) * torch.arange(1.0, 7.0)[:, None]
ALL = torch.ones(6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("predicted", "truth", "mask", "message"),
    [
        (CLOUD, CLOUD[:5], ALL, r"got \[6, 3\], \[5, 3\] and \[6\]"),
        (CLOUD, CLOUD, ALL[:4], r"\[6, 3\] and \[4\]"),
        (CLOUD, CLOUD, ALL.float(), "torch.float32"),
        (CLOUD, CLOUD, ~ALL, "at least 3 points of positive weight, got 0"),
        (CLOUD * torch.nan, CLOUD, ALL, "source holds NaN"),
        (torch.ones(6, 3), CLOUD, ALL, "source points lie on one line or in one place"),
    ],
)
def test_mvs_bad_input(
    predicted: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        aligned_point_error(predicted, truth, mask)
