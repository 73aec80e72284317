"""Pose metrics against closed forms and an independent brute force in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hess_plugin.evaluation.pose import ate, auc, pair_errors, recall, rpe


def turn_z(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def random_extrinsics(views: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(views, 3, 3, generator=generator, dtype=torch.float64))
    rotation = q * torch.linalg.det(q)[:, None, None]
    return torch.cat([rotation, torch.randn(views, 3, 1, generator=generator, dtype=torch.float64)], dim=-1)


def perturbed(extrinsics: torch.Tensor, size: float, seed: int) -> torch.Tensor:
    """Cameras turned by about `size` radians and shifted by about `size`."""
    generator = torch.Generator().manual_seed(seed)
    noise = size * torch.randn(len(extrinsics), 3, 3, generator=generator, dtype=torch.float64)
    turned = torch.linalg.matrix_exp(noise - noise.mT) @ extrinsics
    turned[..., 3] += size * torch.randn(len(extrinsics), 3, generator=generator, dtype=torch.float64)
    return turned


def moved_world(extrinsics: torch.Tensor, scale: float, seed: int) -> torch.Tensor:
    """The same cameras in a world that is turned, shifted and scaled: x' = scale · A x + b."""
    a, b = random_extrinsics(1, seed)[0].split((3, 1), dim=-1)
    rotation = extrinsics[..., :3] @ a.T
    return torch.cat([rotation, scale * extrinsics[..., 3:] - rotation @ b], dim=-1)


def brute_force_pairs(predicted: np.ndarray, truth: np.ndarray) -> tuple[list[float], list[float]]:
    """Angles from traces and dot products of 4x4 matrices, pair by pair."""
    rotations, translations = [], []
    bottom = np.array([[0.0, 0.0, 0.0, 1.0]])
    for i in range(len(truth)):
        for j in range(i + 1, len(truth)):
            relative = []
            for poses in (predicted, truth):
                e_i, e_j = np.vstack([poses[i], bottom]), np.vstack([poses[j], bottom])
                relative.append(e_i @ np.linalg.inv(e_j))
            difference = relative[0][:3, :3].T @ relative[1][:3, :3]
            rotations.append(np.degrees(np.arccos(np.clip((np.trace(difference) - 1) / 2, -1, 1))))
            t, t_true = relative[0][:3, 3], relative[1][:3, 3]
            cosine = abs(t @ t_true) / np.linalg.norm(t) / np.linalg.norm(t_true)
            translations.append(np.degrees(np.arccos(min(cosine, 1))))
    return rotations, translations


def brute_force_auc(errors: np.ndarray, threshold: int) -> float:
    """The definition: NumPy's histogram with integer edges, cumulative sums, their mean."""
    counts, _ = np.histogram(errors, bins=np.arange(threshold + 1))
    return float(np.mean(np.cumsum(counts / len(errors))))


@pytest.mark.parametrize("views", [2, 3, 7])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_pair_errors_equal_brute_force(views: int, size: float) -> None:
    truth = random_extrinsics(views, seed=views)
    predicted = perturbed(truth, size, seed=1)
    errors = pair_errors(predicted, truth)
    rotations, translations = brute_force_pairs(predicted.numpy(), truth.numpy())
    assert errors.rotation.shape == (views * (views - 1) // 2,)
    np.testing.assert_allclose(errors.rotation, rotations, atol=1e-5)
    np.testing.assert_allclose(errors.translation, translations, atol=1e-5)
    np.testing.assert_allclose(errors.pose, np.maximum(rotations, translations), atol=1e-5)


def test_the_other_cameras_axes() -> None:
    """π³ takes E_j E_i⁻¹: as if the views came in reverse; directions differ, rotation angles do not."""
    truth = random_extrinsics(5, seed=20)
    predicted = perturbed(truth, 0.3, seed=21)
    second = pair_errors(predicted, truth, frame="second")
    rotations, translations = brute_force_pairs(predicted.flip(0).numpy(), truth.flip(0).numpy())
    np.testing.assert_allclose(second.rotation.sort().values, np.sort(rotations), atol=1e-5)
    np.testing.assert_allclose(second.translation.sort().values, np.sort(translations), atol=1e-5)
    first = pair_errors(predicted, truth)
    torch.testing.assert_close(first.rotation, second.rotation, atol=1e-5, rtol=0)
    assert (first.translation - second.translation).abs().max() > 0.1


def test_known_angles() -> None:
    """One camera turned by 20 degrees about the axis; its own translation turns along."""
    truth = torch.eye(3, 4, dtype=torch.float64).repeat(2, 1, 1)
    truth[0, 0, 3] = 2
    predicted = truth.clone()
    predicted[0] = turn_z(20) @ truth[0]
    errors = pair_errors(predicted, truth)
    assert errors.rotation.item() == pytest.approx(20)
    assert errors.translation.item() == pytest.approx(20)
    predicted[0, :, 3] = torch.tensor([-7.0, 0.0, 0.0])  # the opposite direction counts as right
    assert pair_errors(predicted, truth).translation.item() == pytest.approx(0, abs=1e-5)


def test_identity_is_perfect_even_for_float32() -> None:
    truth = random_extrinsics(5, seed=3).float()
    errors = pair_errors(truth, truth)
    assert errors.pose.max() < 0.1
    assert auc(errors.pose, 3) == 1.0


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_pair_errors_ignore_the_world_frame(scale: float) -> None:
    truth = random_extrinsics(6, seed=4)
    predicted = perturbed(truth, 0.2, seed=5)
    moved = pair_errors(moved_world(predicted, scale, seed=6), truth)
    torch.testing.assert_close(moved.pose, pair_errors(predicted, truth).pose, atol=1e-5, rtol=0)


def test_pairs_with_one_center_have_no_direction() -> None:
    truth = torch.eye(3, 4).repeat(2, 1, 1)
    predicted = random_extrinsics(2, seed=7).float()
    assert pair_errors(predicted, truth).translation.item() == pytest.approx(90)


@pytest.mark.parametrize("threshold", [1, 3, 30])
def test_auc_equals_histogram(threshold: int) -> None:
    generator = torch.Generator().manual_seed(threshold)
    errors = 1.5 * threshold * torch.rand(501, generator=generator, dtype=torch.float64)
    errors[:20] = errors[:20].floor()  # on the edges of bins
    errors[20], errors[21], errors[22] = threshold, 0, math.inf
    assert auc(errors, threshold) == pytest.approx(brute_force_auc(errors.numpy(), threshold), abs=1e-12)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(0, 1), (0.999, 1), (1, 29 / 30), (29, 1 / 30), (29.99, 1 / 30), (30, 1 / 30), (30.01, 0), (1e6, 0)],
)
def test_auc_of_one_pair(error: float, expected: float) -> None:
    assert auc(torch.tensor([error]).double(), 30) == pytest.approx(expected, abs=1e-15)


def test_recall_counts_what_is_below() -> None:
    errors = torch.tensor([0.0, 4.999, 5.0, 5.001, math.inf]).double()
    assert (recall(errors, 5), recall(errors, 6), recall(errors, 0.5)) == (0.4, 0.8, 0.2)


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_ate_is_zero_up_to_a_similarity(scale: float) -> None:
    truth = random_extrinsics(6, seed=8)
    assert ate(moved_world(truth, scale, seed=9), truth) == pytest.approx(0, abs=1e-12)


def cameras_at(centers: list[list[float]]) -> torch.Tensor:
    centers_t = torch.tensor(centers, dtype=torch.float64)
    rotation = random_extrinsics(len(centers), seed=10)[..., :3]
    return torch.cat([rotation, -rotation @ centers_t[..., None]], dim=-1)


def test_ate_of_a_known_case() -> None:
    """A square stretched by x = 1.5 about its centre, prediction -> truth.

    By symmetry only scale s is left: predicted corners (±1, ±1), true corners (±1.5, ±1); the best s is 1.25
    and each corner misses by (0.25, 0.25).
    """
    square = [[-1.0, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]]
    stretched = [[1.5 * x + 4, y, z] for x, y, z in square]
    assert ate(cameras_at(square), cameras_at(stretched)) == pytest.approx(0.25 * math.sqrt(2))


def test_ate_follows_the_unit_of_truth() -> None:
    truth = random_extrinsics(6, seed=11)
    predicted = perturbed(truth, 0.2, seed=12)
    larger = moved_world(truth, 7.0, seed=13)
    assert ate(predicted, larger) == pytest.approx(7 * ate(predicted, truth))


def brute_force_rpe(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """evo's definition with 4x4 matrices and a similarity found by another solver (SciPy)."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    bottom = np.array([[0.0, 0.0, 0.0, 1.0]])
    poses, true_poses = (
        [np.linalg.inv(np.vstack([e, bottom])) for e in group] for group in (predicted, truth)
    )
    centers, true_centers = (np.array([pose[:3, 3] for pose in group]) for group in (poses, true_poses))

    def misfit(x: np.ndarray) -> np.ndarray:
        turned = Rotation.from_rotvec(x[1:4]).apply(centers)
        return (np.exp(x[0]) * turned + x[4:] - true_centers).ravel()

    starts = [
        np.concatenate([[0.0], Rotation.random(random_state=i).as_rotvec(), np.zeros(3)]) for i in range(12)
    ]
    best = min(
        (least_squares(misfit, start, xtol=1e-14, ftol=1e-14) for start in starts), key=lambda r: r.cost
    )
    turn = Rotation.from_rotvec(best.x[1:4]).as_matrix()
    lengths, angles = [], []
    for pose in poses:
        pose[:3, 3] = np.exp(best.x[0]) * turn @ pose[:3, 3] + best.x[4:]
        pose[:3, :3] = turn @ pose[:3, :3]
    for i in range(len(poses) - 1):
        true_step = np.linalg.inv(true_poses[i]) @ true_poses[i + 1]
        error = np.linalg.inv(true_step) @ np.linalg.inv(poses[i]) @ poses[i + 1]
        lengths.append(np.linalg.norm(error[:3, 3]))
        angles.append(np.degrees(np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1))))
    return float(np.sqrt(np.mean(np.square(lengths)))), float(np.sqrt(np.mean(np.square(angles))))


@pytest.mark.parametrize("size", [0.05, 0.5])
def test_rpe_equals_brute_force(size: float) -> None:
    truth = random_extrinsics(5, seed=30)
    predicted = moved_world(perturbed(truth, size, seed=31), 3.0, seed=32)
    np.testing.assert_allclose(
        rpe(predicted, truth), brute_force_rpe(predicted.numpy(), truth.numpy()), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [0.1, 40.0])
def test_rpe_is_zero_up_to_a_similarity(scale: float) -> None:
    truth = random_extrinsics(6, seed=33)
    np.testing.assert_allclose(rpe(moved_world(truth, scale, seed=34), truth), 0, atol=1e-6)


def test_rpe_of_one_turned_camera() -> None:
    """The last of five views is turned by 60 degrees on the spot: one step of four has that error."""
    truth = random_extrinsics(5, seed=35)
    predicted = truth.clone()
    predicted[4] = turn_z(60) @ truth[4]
    translation, rotation = rpe(predicted, truth)
    assert (translation, rotation) == (pytest.approx(0, abs=1e-12), pytest.approx(60 / math.sqrt(4)))


GOOD = random_extrinsics(4, seed=14)
NAN = GOOD.clone()
NAN[1, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_errors(GOOD[:1], GOOD[:1]), "at least 2 views are needed here, got 1"),
        (lambda: pair_errors(GOOD[:0], GOOD[:0]), "at least 2 views are needed here, got 0"),
        (lambda: pair_errors(GOOD, GOOD[:3]), r"got \[4, 3, 4\] and \[3, 3, 4\]"),
        (lambda: pair_errors(NAN, GOOD), "predicted extrinsics hold NaN"),
        (lambda: ate(GOOD, NAN), "truth extrinsics hold NaN"),
        (lambda: ate(GOOD[:2], GOOD[:2]), "at least 3 views are needed here, got 2"),
        (lambda: ate(GOOD, cameras_at([[float(i), 0, 0] for i in range(4)])), "lie on one line"),
        (lambda: rpe(GOOD, NAN), "truth extrinsics hold NaN"),
        (lambda: rpe(GOOD[:2], GOOD[:2]), "at least 3 views are needed here, got 2"),
        (lambda: recall(torch.zeros(0), 5), r"errors must be \[N\] with N >= 1, got \[0\]"),
        (lambda: recall(torch.tensor([math.nan]), 5), "NaN or negative"),
        (lambda: auc(torch.zeros(0), 30), r"errors must be \[N\] with N >= 1, got \[0\]"),
        (lambda: auc(torch.tensor([1.0, math.nan]), 30), "NaN or negative"),
        (lambda: auc(torch.tensor([-1.0]), 30), "NaN or negative"),
        (lambda: auc(torch.ones(2), 0), "at least 1, got 0"),
        (lambda: auc(torch.ones(2), 2.5), "whole number of degrees"),
    ],
)
def test_pose_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
