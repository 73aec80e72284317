"""Umeyama: known similarities, optimality, degenerate input."""

from __future__ import annotations

import math

import pytest
import torch

from hess_plugin.geometry.similarity import Similarity, umeyama


def random_similarity(seed: int, scale: float = 1.7) -> Similarity:
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return Similarity(torch.tensor(scale).double(), q * torch.linalg.det(q), torch.randn(3).double() * 5)


def cost(similarity: Similarity, source: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> float:
    return float((weights * (similarity.apply(source) - target).square().sum(-1)).sum())


def rotation_about(axis: int, angle: float) -> torch.Tensor:
    cross = torch.zeros(3, 3, dtype=torch.float64)
    cross[(axis + 1) % 3, (axis + 2) % 3], cross[(axis + 2) % 3, (axis + 1) % 3] = -1, 1
    return torch.linalg.matrix_exp(angle * cross)


@pytest.mark.parametrize("count", [3, 4, 101])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_known_similarity(count: int, scale: float) -> None:
    truth = random_similarity(count, scale)
    source = torch.randn(count, 3, dtype=torch.float64)
    found = umeyama(source, truth.apply(source))
    torch.testing.assert_close(found.scale, truth.scale)
    torch.testing.assert_close(found.rotation, truth.rotation)
    torch.testing.assert_close(found.translation, truth.translation)


def test_known_half_turn() -> None:
    half_turn = torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    truth = Similarity(torch.tensor(2.0).double(), half_turn, torch.tensor([1.0, 2.0, 3.0]).double())
    source = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [2, 3, 4]]).double()
    expected = torch.tensor([[-1.0, 2, 3], [1, 4, 3], [1, 2, 1], [-3, 8, -5]]).double()
    torch.testing.assert_close(truth.apply(source), expected)
    torch.testing.assert_close(umeyama(source, expected).rotation, half_turn)


def test_planar_points_are_enough() -> None:
    truth = random_similarity(7)
    source = torch.randn(20, 3, dtype=torch.float64)
    source[:, 2] = 0.3
    found = umeyama(source, truth.apply(source))
    torch.testing.assert_close(found.rotation, truth.rotation)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_nearby_similarity_is_better(mirrored: bool, weighted: bool) -> None:
    """The least-squares optimum against its own neighbourhood, on noisy and on mirrored points."""
    truth = random_similarity(8)
    source = torch.randn(30, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])
    target = truth.apply(source) + 0.1 * torch.randn(30, 3).double()
    if mirrored:
        target = target * torch.tensor([1.0, -1.0, 1.0])
    weights = torch.rand(30).double() if weighted else torch.ones(30).double()
    best = umeyama(source, target, weights if weighted else None)
    assert torch.linalg.det(best.rotation) == pytest.approx(1)
    least = cost(best, source, target, weights)
    for step in (1e-3, -1e-3, 0.2, math.pi):
        others = [Similarity(best.scale * math.exp(step), best.rotation, best.translation)]
        for axis in range(3):
            shift = step * torch.eye(3, dtype=torch.float64)[axis]
            others.append(Similarity(best.scale, best.rotation, best.translation + shift))
            turned = rotation_about(axis, step) @ best.rotation
            # Turn about the cloud's centre, so that the translation does not spoil the comparison.
            center = (weights[:, None] * source).sum(0) / weights.sum()
            moved = best.apply(center) - best.scale * (turned @ center)
            others.append(Similarity(best.scale, turned, moved))
        assert all(cost(other, source, target, weights) > least for other in others)


def test_weights_are_repetitions_and_zero_leaves_out() -> None:
    torch.manual_seed(9)
    source, target = torch.randn(2, 6, 3, dtype=torch.float64)
    weights = torch.tensor([1, 2, 0, 3, 1, 0])
    weighted = umeyama(source, target, weights.double())
    repeated = umeyama(source.repeat_interleave(weights, 0), target.repeat_interleave(weights, 0))
    torch.testing.assert_close(weighted.rotation, repeated.rotation)
    torch.testing.assert_close(weighted.scale, repeated.scale)
    torch.testing.assert_close(weighted.translation, repeated.translation)


def test_float32_points_far_from_the_origin() -> None:
    truth = random_similarity(10)
    source = (torch.randn(50, 3).double() + 1000).float()
    found = umeyama(source, truth.apply(source.double()))
    assert found.scale.dtype == torch.float64
    torch.testing.assert_close(found.rotation, truth.rotation, atol=1e-9, rtol=0)


def test_apply_keeps_dtype_and_shape_and_passes_gradients() -> None:
    points = torch.randn(2, 5, 7, 3, requires_grad=True)
    moved = random_similarity(11, scale=3.0).apply(points)
    assert moved.shape == points.shape
    assert moved.dtype == torch.float32
    moved.square().sum().backward()
    torch.testing.assert_close(points.grad.norm(), 3 * 2 * moved.detach().norm())


LINE = torch.linspace(0, 1, 9)[:, None] * torch.tensor([[0.3, -0.7, 0.2]]) + 5
CLOUD = torch.eye(3).repeat(3, 1) * torch.arange(9.0)[:, None]


@pytest.mark.parametrize(
    ("source", "target", "weights", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), None, "at least 3 points of positive weight, got 0"),
        (CLOUD[:2], CLOUD[:2], None, "at least 3 points of positive weight, got 2"),
        (CLOUD, CLOUD, torch.tensor([1.0] * 2 + [0.0] * 7), "at least 3 points of positive weight, got 2"),
        (CLOUD, CLOUD, torch.tensor([-1.0] + [1.0] * 8), "weights must not be negative, got -1.0"),
        (CLOUD, CLOUD, torch.ones(8), r"weights must be \[N\] = \[9\], got \[8\]"),
        (LINE, CLOUD, None, "source points lie on one line"),
        (CLOUD, LINE, None, "target points lie on one line"),
        (torch.full((9, 3), 0.1), CLOUD, None, "source points lie on one line or in one place"),
        (CLOUD, CLOUD[:4], None, r"both be \[N, 3\], got \[9, 3\] and \[4, 3\]"),
        (CLOUD[:, :2], CLOUD[:, :2], None, r"both be \[N, 3\], got \[9, 2\]"),
        (CLOUD, CLOUD * torch.nan, None, "target holds NaN or infinite values"),
    ],
)
def test_umeyama_bad_input(
    source: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        umeyama(source, target, weights)
