"""Running a model on a scene."""

from __future__ import annotations

import pytest
import torch
from doubles import TinyPi3, TinyVGGT
from torch import nn

from hess_plugin.config import HeSSConfig
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.evaluation.predict import fit_intrinsics, predict
from hess_plugin.patch import apply_hess

SCENE = synthetic_scene(1, 3, image_size=(16, 24))


@pytest.mark.parametrize("build", [TinyVGGT, TinyPi3])
class TestPredict:
    def test_shapes(self, build: type[nn.Module]) -> None:
        torch.manual_seed(0)
        prediction = predict(build().eval(), SCENE)
        expected = {
            "extrinsics": (3, 3, 4), "intrinsics": (3, 3, 3), "points": (3, 16, 24, 3),
            "depth": (3, 16, 24), "confidence": (3, 16, 24),
        }  # fmt: skip
        for name, shape in expected.items():
            value = getattr(prediction, name)
            assert (value.shape, value.dtype, value.device.type) == (shape, torch.float32, "cpu"), name
            assert not value.requires_grad
        assert (prediction.scene, prediction.density) == ("synthetic-1", 1.0)
        assert prediction.seconds > 0

    def test_density_is_the_measured_one(self, build: type[nn.Module]) -> None:
        torch.manual_seed(0)
        model = build().eval()
        config = HeSSConfig(
            allocation="uniform", sparse_ratio=0.5, cdf_threshold=0, q_block_size=8, kv_block_size=8
        )
        with apply_hess(model, None, config) as handle:
            prediction = predict(model, SCENE, handle)
        # 3 views of 4 x 6 patches are 9 blocks of 8; half of them is 4.
        assert prediction.density == pytest.approx(4 / 9)
        assert not torch.equal(prediction.points, predict(model, SCENE).points)


class TestFitIntrinsics:
    @pytest.mark.parametrize("size", [(16, 16), (14, 30), (31, 13)])
    def test_finds_the_focal_length(self, size: tuple[int, int]) -> None:
        scene = synthetic_scene(2, 4, image_size=size)
        found = fit_intrinsics(scene.world_points, scene.extrinsics)
        torch.testing.assert_close(found[:, 0, 0], scene.intrinsics[:, 0, 0], rtol=0.05, atol=0)
        assert torch.equal(found[:, 0, 0], found[:, 1, 1])
        center = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
        assert torch.equal(found[:, :2, 2], center.expand(4, 2))

    def test_points_behind_the_camera_do_not_count(self) -> None:
        scene = synthetic_scene(2, 1, image_size=16)
        behind = -10 * scene.extrinsics[0, 2, :3] - scene.extrinsics[0, :, :3].T @ scene.extrinsics[0, :, 3]
        points = scene.world_points.clone()
        points[0, :2] = behind
        found = fit_intrinsics(points, scene.extrinsics)
        torch.testing.assert_close(found[:, 0, 0], scene.intrinsics[:, 0, 0], rtol=0.1, atol=0)

    def test_nothing_to_fit_stays_invertible(self) -> None:
        found = fit_intrinsics(torch.zeros(1, 4, 4, 3), torch.eye(3, 4)[None])
        assert torch.isfinite(found.inverse()).all()
