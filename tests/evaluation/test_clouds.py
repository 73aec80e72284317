"""Distances of clouds and errors of depth: closed forms and an independent brute force in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hess_plugin.evaluation.mvs import cloud_errors, cut_distances, depth_errors
from hess_plugin.geometry.clouds import estimate_normals, icp_point_to_point, thin


def cloud(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - reference[None], axis=-1)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 40), (301, 97)])
def test_cloud_errors_equal_brute_force(n: int, m: int) -> None:
    predicted, truth, normals = cloud(n, 1), cloud(m, 2), (cloud(n, 3), -5 * cloud(m, 4))
    errors = cloud_errors(predicted, truth, normals)
    table = distances(predicted.numpy(), truth.numpy())
    ours, theirs = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in normals)
    there = np.abs((ours * theirs[table.argmin(1)]).sum(1)).mean()
    back = np.abs((theirs * ours[table.argmin(0)]).sum(1)).mean()
    expected = (
        *(table.min(1).mean(), table.min(0).mean(), np.median(table.min(1)), np.median(table.min(0))),
        (there + back) / 2,
    )
    np.testing.assert_allclose(errors, expected, rtol=1e-12)
    assert errors.chamfer == pytest.approx((expected[0] + expected[1]) / 2)
    assert math.isnan(cloud_errors(predicted, truth).normal_consistency)


def test_two_points_a_known_distance_apart() -> None:
    origin, other = torch.zeros(1, 3), torch.tensor([[3.0, 0.0, 4.0]])
    errors = cloud_errors(origin, other)
    assert (errors.accuracy, errors.completeness, errors.chamfer) == (5, 5, 5)
    both = cloud_errors(torch.cat([origin, other]), origin)
    assert (both.accuracy, both.completeness) == (2.5, 0)


def test_identity_is_perfect() -> None:
    points = cloud(50, 5)
    errors = cloud_errors(points, points, (points, -points))
    assert errors[:4] == (0, 0, 0, 0)
    assert errors.normal_consistency == pytest.approx(1)


@pytest.mark.parametrize("cutoff", [0.3, 0.5, 100.0])
def test_cut_distances_equal_brute_force(cutoff: float) -> None:
    points, reference = cloud(83, 6), cloud(31, 7)
    nearest = distances(points.numpy(), reference.numpy()).min(1)
    errors = cut_distances(points, reference, cutoff)
    kept = nearest[nearest < cutoff]
    assert errors.dropped == pytest.approx(1 - len(kept) / 83)
    assert errors.mean == pytest.approx(kept.mean())


def test_the_cutoff_itself_is_left_out() -> None:
    points = torch.tensor([[0.0, 0, 20.0]])
    errors = cut_distances(points, torch.zeros(1, 3), 20.0)
    assert errors.dropped == 1
    assert math.isnan(errors.mean)


def test_depth_errors_equal_brute_force() -> None:
    generator = torch.Generator().manual_seed(8)
    truth = 1 + torch.rand(3, 7, 5, generator=generator)
    predicted = truth * (0.7 + 0.8 * torch.rand(3, 7, 5, generator=generator))
    mask = torch.rand(3, 7, 5, generator=generator) > 0.3
    p, t = predicted[mask].double().numpy(), truth[mask].double().numpy()
    p = p * np.median(t) / np.median(p)
    expected = np.mean(np.abs(p - t) / t), np.mean(np.maximum(p / t, t / p) < 1.25)
    np.testing.assert_allclose(depth_errors(predicted, truth, mask), expected, rtol=1e-9)
    predicted[~mask], truth[~mask] = torch.nan, -1  # not read
    np.testing.assert_allclose(depth_errors(40 * predicted, truth, mask), expected, rtol=1e-5)


def test_depth_behind_the_camera_is_wrong() -> None:
    truth = torch.ones(4)
    errors = depth_errors(torch.tensor([1.0, 1.0, 1.0, -1.0]), truth, truth > 0)
    assert errors == (0.5, 0.75)


GOOD, NAN, EMPTY = torch.eye(3), torch.full((3, 3), math.nan), torch.zeros(0, 3)
ALL = torch.ones(3, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cloud_errors(EMPTY, GOOD), r"predicted must be \[N, 3\] with N >= 1, got \[0, 3\]"),
        (lambda: cloud_errors(GOOD, EMPTY), r"truth must be \[N, 3\] with N >= 1"),
        (lambda: cloud_errors(GOOD, NAN), "truth holds NaN"),
        (lambda: cloud_errors(GOOD, GOOD, (GOOD, GOOD[:2])), "normals must be one per point"),
        (lambda: cloud_errors(GOOD, GOOD, (0 * GOOD, GOOD)), "predicted normals hold NaN, infinite or zero"),
        (lambda: cut_distances(NAN, GOOD, 1), "points holds NaN"),
        (lambda: cut_distances(GOOD, EMPTY, 1), "reference must be"),
        (lambda: depth_errors(GOOD, GOOD, ~ALL), "no depth is known"),
        (lambda: depth_errors(GOOD, GOOD, ALL.float()), "torch.float32"),
        (lambda: depth_errors(NAN, ALL.float(), ALL), "predicted depth holds NaN"),
        (lambda: depth_errors(-ALL.float(), ALL.float(), ALL), "median of the predicted depth is -1.0"),
    ],
)
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


class TestTools:
    def test_icp_undoes_a_small_motion(self) -> None:
        points = cloud(2000, 9)
        c, s = math.cos(0.01), math.sin(0.01)
        turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]).double()
        moved = points @ turn.T + 0.01
        motion = icp_point_to_point(moved, points, radius=1.0)
        assert (motion.apply(moved) - points).norm(dim=-1).max() < 1e-3
        assert motion.scale == 1

    def test_normals_of_a_plane(self) -> None:
        points = cloud(200, 10) * torch.tensor([1.0, 1.0, 0.0])
        np.testing.assert_allclose(estimate_normals(points).abs(), [[0, 0, 1]] * 200, atol=1e-9)

    def test_thinned_points_are_apart_and_cover(self) -> None:
        points, spacing = cloud(800, 11), 0.4
        kept = thin(points, spacing, seed=0)
        apart = distances(kept.numpy(), kept.numpy())
        np.fill_diagonal(apart, np.inf)
        assert apart.min() > spacing
        assert distances(points.numpy(), kept.numpy()).min(1).max() <= spacing
        assert 10 < len(kept) < 800
        assert not torch.equal(kept, thin(points, spacing, seed=1)[: len(kept)])
