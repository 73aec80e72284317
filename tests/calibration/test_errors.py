"""Camera and point error: hand-worked values, normalisation, gradients, Faiss against exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from predictions import bent_prediction, perfect_prediction, quarter_turn

from hess_plugin.backbones.base import Reconstruction
from hess_plugin.calibration.errors import (
    align,
    calibration_errors,
    camera_error,
    confident_pixels,
    point_error,
)
from hess_plugin.calibration.ground_truth import GroundTruth
from hess_plugin.config import CalibrationConfig
from hess_plugin.datasets.scene import Scene
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.geometry.similarity import Similarity, umeyama

IDENTITY = Similarity(torch.tensor(1.0), torch.eye(3), torch.zeros(3))
SCENE = synthetic_scene(7, num_views=3, image_size=(9, 12))
SCENE_40 = synthetic_scene(3, num_views=4, image_size=(40, 40))


def hand_error(points: torch.Tensor, truth: GroundTruth, radius: float) -> float:
    return point_error(points, truth, IDENTITY, CalibrationConfig(inlier_radius=radius))[0].item()


def truth_of(centers: list[list[float]], points: list[list[float]]) -> GroundTruth:
    """Ground truth with one row of pixels, all known."""
    grid = torch.tensor(points)[None, None]
    return GroundTruth("hand", torch.tensor(centers), grid, torch.ones(grid.shape[:-1], dtype=torch.bool))


def changed_world(scene: Scene, scale: float, shift: float) -> Scene:
    """The same scene in another unit and with another origin, x' = scale · x + shift."""
    rotation, translation = scene.extrinsics.double().split((3, 1), dim=-1)
    u, _, v_t = torch.linalg.svd(rotation)  # float32 rotations are not orthogonal enough for a far origin
    offset = torch.full((3, 1), shift, dtype=torch.float64)
    extrinsics = torch.cat([u @ v_t, scale * translation - u @ v_t @ offset], dim=-1)
    return replace(scene, extrinsics=extrinsics, depth=scene.depth.double() * scale)


def test_camera_error_by_hand() -> None:
    """Two cameras; the second is predicted 3 to the right and 4 down: 1/(2·2) · 25."""
    truth = truth_of([[0.0, 0, 0], [1, 1, 1]], [[0.0, 0, 1]])
    predicted = torch.tensor([[0.0, 0, 0], [4, 5, 1]])
    assert camera_error(predicted, truth, IDENTITY).item() == 6.25
    doubled = Similarity(torch.tensor(2.0), torch.eye(3), torch.zeros(3))
    assert camera_error(predicted / 2, truth, doubled).item() == 6.25


def test_point_error_by_hand() -> None:
    """Distances 0.25, 0.5 and 3 from the nearest true point, radius 1: 1/(2·2) · (0.0625 + 0.25)."""
    truth = truth_of([[0.0, 0, 0]], [[0.0, 0, 1], [0, 8, 0]])
    predicted = torch.tensor([[0.25, 0, 1], [0, 8, 0.5], [3, 8, 0]])
    assert hand_error(predicted, truth, 1.0) == 0.3125 / 4
    # The inequality of Eq. 3 is strict: a point at the radius is no inlier.
    assert hand_error(predicted, truth, 0.5) == 0.0625 / 2


def test_point_error_does_not_read_unknown_pixels() -> None:
    truth = truth_of([[0.0, 0, 0]], [[0.0, 0, 1], [0, 8, 0]])
    truth.points[0, 0, 1] = torch.nan
    truth.mask[0, 0, 1] = False
    assert hand_error(torch.tensor([[0.0, 0.5, 1]]), truth, 1.0) == 0.125


def test_normalised_scene_by_hand() -> None:
    """Points at distances 5 and 15 from the first camera, mean 10, are at 0.5 and 1.5."""
    extrinsics = torch.eye(3, 4).repeat(2, 1, 1)
    extrinsics[0, 2, 3], extrinsics[1, 0, 3] = -100.0, 20.0  # centres (0, 0, 100) and (-20, 0, 0)
    intrinsics = torch.diag(torch.tensor([4.0, 4.0, 1.0])).repeat(2, 1, 1)
    depth = torch.zeros(2, 2, 4)
    depth[0, 0, 3], depth[0, 0, 0] = 4.0, 15.0
    truth = GroundTruth.of(Scene("two", torch.zeros(2, 3, 2, 4), extrinsics, intrinsics, depth))
    torch.testing.assert_close(truth.centers, torch.tensor([[0.0, 0, 0], [-2, 0, -10]]))
    torch.testing.assert_close(truth.points[0, 0, 3], torch.tensor([0.3, 0.0, 0.4]))
    torch.testing.assert_close(truth.points[0, 0, 0], torch.tensor([0.0, 0.0, 1.5]))
    assert truth.mask.sum() == 2


@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (0.01, 3.0), (1.0, 5e5)])
def test_normalised_scene_does_not_depend_on_the_dataset(scale: float, shift: float) -> None:
    truth, other = GroundTruth.of(SCENE), GroundTruth.of(changed_world(SCENE, scale, shift))
    torch.testing.assert_close(other.centers, truth.centers, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.points[other.mask], truth.points[truth.mask], atol=1e-5, rtol=1e-5)
    assert truth.points[truth.mask].norm(dim=-1).mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_errors_of_a_perfect_prediction_vanish(scale: float) -> None:
    prediction = perfect_prediction(SCENE, quarter_turn(scale))
    errors = calibration_errors(prediction, SCENE, CalibrationConfig())
    assert errors.camera.item() == pytest.approx(0, abs=1e-10)
    assert errors.points.item() == pytest.approx(0, abs=1e-10)
    assert errors.report == {
        "camera_error": errors.camera.item(),
        "point_error": errors.points.item(),
        "inlier_share": 1.0,
        "alignment_fitness": pytest.approx(1, abs=1e-6),
        "alignment_rmse": pytest.approx(0, abs=1e-5),
    }


def test_alignment_of_a_known_similarity() -> None:
    truth, expected = GroundTruth.of(SCENE), quarter_turn(2.5)
    points, centers = expected.apply(truth.points.double()), expected.apply(truth.centers.double())
    found = align(points, torch.ones_like(truth.mask), centers, truth, CalibrationConfig()).transform
    torch.testing.assert_close(found.scale, 1 / expected.scale, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.rotation, expected.rotation.T, atol=1e-6, rtol=0)


def test_alignment_is_constant_for_gradients() -> None:
    truth = GroundTruth.of(SCENE)
    points, centers = truth.points.clone().requires_grad_(), truth.centers.clone().requires_grad_()
    found = align(points, torch.ones_like(SCENE.mask), centers, truth, CalibrationConfig()).transform
    assert not any(part.requires_grad for part in (found.scale, found.rotation, found.translation))


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    truth = GroundTruth.of(SCENE)
    transform = quarter_turn(0.7)
    centers = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: camera_error(c, truth, transform), (centers,))
    near = truth.points[truth.mask][::40].double() + 0.02 * torch.randn(1, 3).double()
    points = Similarity(transform.scale, transform.rotation, transform.translation)
    source = ((near - points.translation) @ points.rotation / points.scale).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: point_error(p, truth, transform, CalibrationConfig(inlier_radius=0.5))[0], (source,)
    )


def test_errors_equal_brute_force() -> None:
    """All steps again, with a loop over points, for a noisy prediction."""
    torch.manual_seed(1)
    prediction = perfect_prediction(SCENE, quarter_turn(2.0))
    noisy = prediction.points + 0.3 * torch.randn(prediction.points.shape)
    shifted = prediction.extrinsics.clone()
    shifted[..., 3] += 0.1 * torch.randn(3)
    config = CalibrationConfig(inlier_radius=0.1, icp=False)
    errors = calibration_errors(replace(prediction, points=noisy, extrinsics=shifted), SCENE, config)
    truth = GroundTruth.of(SCENE)
    transform = umeyama(noisy[0][truth.mask], truth.known)
    squared = []
    known = truth.points[truth.mask].double()
    for point in noisy[0].reshape(-1, 3):
        moved = transform.scale * transform.rotation @ point + transform.translation
        nearest = min(float((moved - other) @ (moved - other)) for other in known)
        if nearest < 0.1**2:
            squared.append(nearest)
    assert 0 < len(squared) < truth.mask.numel()
    assert errors.points.item() == pytest.approx(sum(squared) / len(squared) / 2, rel=1e-6)
    total = 0.0
    for extrinsics, center in zip(shifted[0], truth.centers, strict=True):
        position = -extrinsics[:, :3].T @ extrinsics[:, 3]
        moved = transform.scale * transform.rotation @ position + transform.translation
        total += float((moved - center).square().sum())
    assert errors.camera.item() == pytest.approx(total / (2 * 3), rel=1e-6)


def test_max_points_are_drawn_by_seed() -> None:
    torch.manual_seed(2)
    prediction = perfect_prediction(SCENE, quarter_turn(1.0))
    prediction = replace(prediction, points=prediction.points + 0.1 * torch.randn(prediction.points.shape))

    def error(**settings: float) -> float:
        return calibration_errors(prediction, SCENE, CalibrationConfig(**settings)).points.item()

    assert error(max_points=50) == error(max_points=50)
    assert error(max_points=50) != error(max_points=50, seed=1)
    assert error(max_points=SCENE.mask.numel()) == pytest.approx(error(max_points=10**6, seed=1))


def test_unconfident_points_take_no_part() -> None:
    """A tenth of the pixels is garbage of low confidence: without them the prediction is perfect."""
    torch.manual_seed(3)
    prediction = perfect_prediction(SCENE, quarter_turn(1.0))
    garbage = torch.rand(prediction.confidence.shape) < 0.1
    prediction.points[garbage] += 5.0
    prediction.confidence[garbage] = 0.5
    kept = calibration_errors(prediction, SCENE, CalibrationConfig(min_fitness=0.0))
    dropped = calibration_errors(prediction, SCENE, CalibrationConfig(min_confidence_quantile=0.2))
    assert dropped.camera.item() == pytest.approx(0, abs=1e-9)
    assert dropped.points.item() == pytest.approx(0, abs=1e-9)
    assert kept.camera.item() > 1e-4


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [(0.0, [1, 1, 1, 1]), (0.25, [1, 0, 1, 1]), (0.5, [1, 0, 1, 0]), (1.0, [0, 0, 1, 0])],
)
def test_confident_pixels(quantile: float, expected: list[int]) -> None:
    confidence = torch.tensor([[[3.0, 1.0], [7.0, 3.0]]])
    assert confident_pixels(confidence, quantile).flatten().int().tolist() == expected


def nan_points(prediction: Reconstruction) -> Reconstruction:
    points = prediction.points.clone()
    points[0, 0, 0, 0] = math.nan
    return replace(prediction, points=points)


GOOD = perfect_prediction(SCENE, quarter_turn(1.0))
COLLAPSED = replace(GOOD, points=torch.zeros_like(GOOD.points))


@pytest.mark.parametrize(
    ("prediction", "scene", "message"),
    [
        (GOOD, replace(SCENE, depth=None), "scene 'synthetic-7' lacks cameras or depth"),
        (GOOD, replace(SCENE, depth=SCENE.depth * 0), "scene 'synthetic-7' has no known depth"),
        (nan_points(GOOD), SCENE, "scene 'synthetic-7'.* NaN"),
        (GOOD, SCENE.select([0, 1]), r"predicted points are \[3, 9, 12, 3\], the ground truth is \[2, "),
        (COLLAPSED, SCENE, "scene 'synthetic-7': it cannot be aligned .* one line"),
    ],
)
def test_calibration_errors_bad_input(prediction: Reconstruction, scene: Scene, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_errors(prediction, scene, CalibrationConfig())


def test_no_inliers_names_the_scene_and_the_distance() -> None:
    truth = truth_of([[0.0, 0, 0]], [[0.0, 0, 1]])
    with pytest.raises(ValueError, match=r"scene 'hand': none of 1 .* inlier_radius = 0.25 .*nearest: 3\)"):
        hand_error(torch.tensor([[0.0, 0, 4]]), truth, 0.25)


def test_faiss_and_exact_give_the_same_errors_and_gradients() -> None:
    prediction = bent_prediction(SCENE_40)
    found = {}
    for neighbors in ("exact", "faiss"):
        points = prediction.points.clone().requires_grad_()
        errors = calibration_errors(
            replace(prediction, points=points), SCENE_40, CalibrationConfig(neighbors=neighbors)
        )
        found[neighbors] = errors, *torch.autograd.grad(errors.points, points)
    exact, faiss = found["exact"], found["faiss"]
    assert faiss[0].points.item() == pytest.approx(exact[0].points.item(), rel=0.01)
    assert torch.cosine_similarity(faiss[1].flatten(), exact[1].flatten(), dim=0) > 0.99
    assert 0.95 < faiss[0].report["recall"] <= 1
    assert "recall" not in exact[0].report
