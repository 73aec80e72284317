"""Alignment of predictions: to clouds, refused where it explains nothing, improved by ICP."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from predictions import bent_prediction, perfect_prediction, quarter_turn, with_cloud

import hess_plugin
from hess_plugin.backbones import find_backbone
from hess_plugin.backbones.base import Reconstruction
from hess_plugin.calibration.errors import _judged, calibration_errors
from hess_plugin.calibration.ground_truth import GroundTruth
from hess_plugin.config import CalibrationConfig
from hess_plugin.datasets.scene import Scene
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.geometry.consensus import AlignmentError
from hess_plugin.geometry.similarity import Similarity
from hess_plugin.models import VggtModel

IDENTITY = Similarity(torch.tensor(1.0), torch.eye(3), torch.zeros(3))
SCENE = synthetic_scene(3, num_views=4, image_size=(40, 40))


NOISE = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))


class TestCloudTruth:
    CONFIG = CalibrationConfig(truth="cloud")

    def test_normalised_by_the_cloud(self) -> None:
        scene = with_cloud(SCENE, slice(0, 2))
        truth = GroundTruth.of(scene, "cloud")
        assert truth.known.shape == scene.cloud.shape
        assert truth.known.norm(dim=-1).mean().item() == pytest.approx(1, abs=1e-5)
        assert truth.centers[0].norm().item() == pytest.approx(0, abs=1e-6)

    def test_errors_are_close_to_those_from_pixels(self) -> None:
        prediction = bent_prediction(SCENE)
        by_pixels = calibration_errors(prediction, SCENE, CalibrationConfig())
        by_cloud = calibration_errors(prediction, with_cloud(SCENE), self.CONFIG)
        assert by_cloud.report["alignment_fitness"] > 0.95
        assert by_cloud.points.item() == pytest.approx(by_pixels.points.item(), rel=0.5)
        assert by_cloud.camera.item() < 4 * by_pixels.camera.item() + 1e-3

    @pytest.mark.parametrize(
        ("scene", "message"),
        [
            (SCENE, "scene 'synthetic-3' has no cloud of its own"),
            (replace(with_cloud(SCENE), extrinsics=None), "scene 'synthetic-3' lacks cameras"),
            (
                replace(SCENE, cloud=torch.full((5, 3), torch.nan)),
                "scene 'synthetic-3' has no known cloud",
            ),
            (replace(SCENE, cloud=NOISE[:9]), "'synthetic-3': it cannot be aligned .* holds 9 points"),
            (replace(SCENE, cloud=NOISE), "'synthetic-3': it cannot be aligned .* matched features"),
        ],
    )
    def test_bad_clouds(self, scene: Scene, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            calibration_errors(bent_prediction(SCENE), scene, self.CONFIG)

    def test_cameras_in_one_place_tell_no_scale(self) -> None:
        prediction = bent_prediction(SCENE)
        prediction.extrinsics[:] = prediction.extrinsics[:, :1].clone()
        with pytest.raises(AlignmentError, match=r"'synthetic-3': .* predicted cameras stand in one place"):
            calibration_errors(prediction, with_cloud(SCENE), self.CONFIG)


class TestRefusal:
    """Clouds that lie on each other are no proof; see the docstring of `align`."""

    def garbage(self) -> Reconstruction:
        """A blob where the scene is, of its size: near the truth everywhere, and wrong everywhere."""
        torch.manual_seed(0)
        perfect = perfect_prediction(SCENE, quarter_turn(1.0))
        known = perfect.points[0][SCENE.mask]
        blob = known[torch.randint(len(known), perfect.points.shape[:-1])] + 0.05 * torch.randn(3)
        return replace(perfect, points=blob)

    def test_a_prediction_of_nothing_is_refused_although_its_points_are_near(self) -> None:
        with pytest.raises(AlignmentError, match=r"'synthetic-3': its alignment explains [\d.]+% .* 70%"):
            calibration_errors(self.garbage(), SCENE, CalibrationConfig())
        taken = calibration_errors(self.garbage(), SCENE, CalibrationConfig(min_fitness=0.0))
        assert taken.report["inlier_share"] > 0.9
        assert taken.report["alignment_fitness"] < 0.1

    @pytest.mark.parametrize("bend", [0.0, 0.05])
    def test_a_good_prediction_is_not(self, bend: float) -> None:
        errors = calibration_errors(bent_prediction(SCENE, bend), SCENE, CalibrationConfig())
        assert errors.report["alignment_fitness"] > 0.95

    def test_fitness_by_hand(self) -> None:
        """Two of three cameras off by 1 each way, variance of the truth 8/3: 1 - (2/3) / (8/3)."""
        target = torch.tensor([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])
        source = target + torch.tensor([[1.0], [0], [-1]]) * torch.tensor([0.0, 1, 0])
        found = _judged(IDENTITY, source, target, "hand", "cameras", 0.7)
        assert found.fitness == pytest.approx(0.75)
        assert found.rmse == pytest.approx(math.sqrt(2 / 3))
        with pytest.raises(AlignmentError, match=r"'hand': .* 75.0% of .* asks for 80%"):
            _judged(IDENTITY, source, target, "hand", "cameras", 0.8)


def test_icp_improves_an_alignment_that_outliers_have_spoilt() -> None:
    """A tenth of the pixels far away in one direction pulls Umeyama off; ICP sees only near points."""
    prediction = bent_prediction(SCENE, bend=0.0)
    outliers = torch.rand(prediction.confidence.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    prediction.points[outliers] += 0.3 * torch.tensor([1.0, 0.5, 0]) * prediction.points.std()
    without = calibration_errors(prediction, SCENE, CalibrationConfig(icp=False))
    refined = calibration_errors(prediction, SCENE, CalibrationConfig(icp=True))
    assert refined.camera.item() < 0.5 * without.camera.item()
    assert refined.points.item() < without.points.item()


def test_errors_are_the_same_bits_every_time() -> None:
    prediction = bent_prediction(SCENE)
    for config in (CalibrationConfig(neighbors="faiss"), CalibrationConfig(truth="cloud")):
        scene = with_cloud(SCENE) if config.truth == "cloud" else SCENE
        first, second = (calibration_errors(prediction, scene, config).report for _ in range(2))
        assert first == second


def test_the_embedded_model_is_believed_on_scenes_like_its_own_and_not_on_noise() -> None:
    """It fails on noise, where its points nevertheless lie near known ones."""
    assets = Path(hess_plugin.__file__).parent / "assets"
    model = VggtModel.from_pretrained(assets / "tiny_vggt").eval()
    own = synthetic_scene(10_000, num_views=4, image_size=model.config.img_size)
    noise = replace(own, images=torch.rand(own.images.shape, generator=torch.Generator().manual_seed(0)))

    def report(scene: Scene, min_fitness: float) -> dict[str, float]:
        with torch.no_grad():
            prediction = find_backbone(model).reconstruct(model(scene.images[None]))
        config = CalibrationConfig(max_points=2000, min_fitness=min_fitness)
        return calibration_errors(prediction, scene, config).report

    assert report(own, 0.7)["alignment_fitness"] > 0.9
    assert report(noise, 0.0)["inlier_share"] > 0.9
    with pytest.raises(AlignmentError, match="'synthetic-10000': its alignment explains"):
        report(noise, 0.7)
