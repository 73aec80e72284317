"""Predictions against a reference."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.evaluation.compare import Reference, align, compare
from hess_plugin.evaluation.predict import Prediction
from hess_plugin.geometry.similarity import Similarity
from hess_plugin.plots.point_cloud import move_cameras

SCENE = synthetic_scene(9, 5, image_size=24)


def perfect(similarity: Similarity | None = None) -> Prediction:
    """The ground truth as a prediction, in a world of its own."""
    similarity = similarity or Similarity(torch.tensor(1.0), torch.eye(3), torch.zeros(3))
    return Prediction(
        scene=SCENE.name,
        extrinsics=move_cameras(SCENE.extrinsics, similarity),
        intrinsics=SCENE.intrinsics,
        points=similarity.apply(SCENE.world_points),
        depth=SCENE.depth * similarity.scale,
        confidence=torch.ones_like(SCENE.depth),
        seconds=1.0,
        density=1.0,
    )


def test_perfect_in_any_world() -> None:
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    elsewhere = Similarity(torch.tensor(7.0), turn, torch.tensor([1.0, 2.0, 3.0]))
    reference = Reference.from_scene(SCENE)
    metrics = compare(perfect(elsewhere), reference)
    assert metrics["auc_30"] == 1.0
    assert max(metrics["pose_error"], metrics["ate"], metrics["point_error"]) < 0.1
    back = align(perfect(elsewhere), reference)
    torch.testing.assert_close(float(back.scale), 1 / 7)


def test_distances_are_in_the_scenes_unit() -> None:
    """The same mistake in a world ten times as large is the same number."""
    noise = 0.05 * torch.randn(SCENE.world_points.shape, generator=torch.Generator().manual_seed(0))
    large = Similarity(torch.tensor(10.0), torch.eye(3), torch.zeros(3))
    known = {"points": SCENE.world_points + noise, "extrinsics": SCENE.extrinsics.clone()}
    known["extrinsics"][0, 0, 3] += 0.3
    noisy = replace(perfect(), **known)
    small_metrics = compare(noisy, Reference.from_prediction(replace(perfect(), depth=SCENE.depth)))
    reference = Reference.from_prediction(perfect(large))
    large_metrics = compare(noisy, reference)
    assert reference.unit == pytest.approx(10 * Reference.from_scene(SCENE).unit, rel=1e-3)
    assert small_metrics["point_error"] > 0.01
    assert small_metrics["ate"] > 0.005
    assert large_metrics == pytest.approx(small_metrics, rel=1e-3, abs=1e-3)


def test_unknown_pixels_are_not_read() -> None:
    prediction = perfect()
    prediction.points[~SCENE.mask] = 1e6
    assert (~SCENE.mask).any()
    assert compare(prediction, Reference.from_scene(SCENE))["point_error"] < 1e-5


def test_cameras_on_a_line_have_no_ate() -> None:
    """Photos from a straight walk are legal; only the alignment of their centres is undefined."""
    walk = torch.eye(3, 4).repeat(5, 1, 1)
    walk[:, 0, 3] = torch.arange(5.0)
    prediction = replace(perfect(), extrinsics=walk)
    metrics = compare(prediction, Reference.from_prediction(prediction))
    assert math.isnan(metrics["ate"])
    assert metrics["auc_30"] == 1.0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="finite"):
        compare(replace(perfect(), extrinsics=SCENE.extrinsics * torch.nan), Reference.from_scene(SCENE))
