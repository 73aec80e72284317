"""Predictions in one convention: what holds in every family, and those of VGGT and π³ by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import TinyPi3, TinyVGGT
from families import images
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hess_plugin.backbones import find_backbone
from hess_plugin.backbones.pi3 import Pi3Backbone
from hess_plugin.backbones.vggt import VggtBackbone
from hess_plugin.geometry.cameras import decode_pose, invert_rigid, unproject_depth


class TestEveryFamily:
    def test_shapes_and_gradients(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        result = backbone.reconstruct(backbone.predict(model, images(batch=2)))
        expected = {
            "extrinsics": (2, 3, 3, 4),
            "points": (2, 3, 12, 20, 3),
            "confidence": (2, 3, 12, 20),
            "depth": (2, 3, 12, 20),
        }
        weight = list(backbone.global_attentions(model).values())[-1].qkv.weight
        for name, shape in expected.items():
            field = getattr(result, name)
            assert (tuple(field.shape), field.dtype) == (shape, torch.float32)
            (gradient,) = torch.autograd.grad(field.square().sum(), weight, retain_graph=True)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0

    def test_depth_is_that_of_the_points(self, model: nn.Module) -> None:
        """True of every family whose points come from depth, or that predicts points in the camera."""
        backbone = find_backbone(model)
        result = backbone.reconstruct(backbone.predict(model, images()), point_source="depth")
        local = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
        z = (local + result.extrinsics[:, :, None, None, :, 3])[..., 2]
        torch.testing.assert_close(z, result.depth, atol=1e-4, rtol=1e-4)

    def test_half_precision_outputs_give_float32_geometry(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        outputs = tree_map_only(Tensor, Tensor.bfloat16, backbone.predict(model, images()))
        result = backbone.reconstruct(outputs)
        assert {getattr(result, name).dtype for name in ("extrinsics", "points", "depth")} == {torch.float32}


class TestVggtAndPi3:
    def test_vggt_by_hand(self) -> None:
        """A camera two units behind the origin, 90 degrees wide, sees a wall at z = 1, three units away."""
        pose = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, torch.pi / 2, torch.pi / 2])
        outputs = {
            "pose_enc": pose.expand(1, 1, 9),
            "depth": torch.full((1, 1, 2, 4, 1), 3.0),
            "depth_conf": torch.full((1, 1, 2, 4), 7.0),
            "world_points": torch.ones(1, 1, 2, 4, 3),
            "world_points_conf": torch.full((1, 1, 2, 4), 5.0),
        }
        backbone = VggtBackbone()
        from_head = backbone.reconstruct(outputs)
        assert torch.equal(
            from_head.extrinsics[0, 0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])
        )
        assert (from_head.points.unique().item(), from_head.confidence.unique().item()) == (1, 5)
        from_depth = backbone.reconstruct(outputs, point_source="depth")
        # fx = 2, cx = 2, fy = 1, cy = 1: the first pixel looks at x/z = -1, y/z = -1
        torch.testing.assert_close(from_depth.points[0, 0, 0, 0], torch.tensor([-3.0, -3.0, 1.0]))
        assert from_depth.confidence.unique().item() == 7
        del outputs["depth"], outputs["depth_conf"]
        assert backbone.reconstruct(outputs).depth.unique().item() == 3  # z of (1, 1, 1) in the camera

    @pytest.mark.parametrize("missing", ["enable_point", "enable_depth"])
    def test_vggt_with_one_dense_head(self, missing: str) -> None:
        torch.manual_seed(0)
        model = TinyVGGT(**{missing: False}).eval()
        outputs = model(images())
        result = find_backbone(model).reconstruct(outputs)
        if missing == "enable_point":
            assert torch.equal(result.depth, outputs["depth"][..., 0])
            assert torch.equal(result.confidence, outputs["depth_conf"])
        else:
            assert torch.equal(result.points, outputs["world_points"])
            local = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
            z = local[..., 2] + result.extrinsics[:, :, 2, 3, None, None]
            torch.testing.assert_close(result.depth, z)

    def test_vggt_depth_points_project_to_their_pixels(self) -> None:
        torch.manual_seed(0)
        model = TinyVGGT().eval()
        outputs = model(images())
        result = VggtBackbone().reconstruct(outputs, point_source="depth")
        extrinsics, intrinsics = decode_pose(outputs["pose_enc"], (12, 20))
        assert torch.equal(result.points, unproject_depth(result.depth, extrinsics, intrinsics))

    def test_pi3_poses_are_inverted(self) -> None:
        torch.manual_seed(0)
        model = TinyPi3().eval()
        outputs = model(images())
        result = Pi3Backbone().reconstruct(outputs)
        torch.testing.assert_close(result.extrinsics, invert_rigid(outputs["camera_poses"])[..., :3, :])
        local = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
        local = local + result.extrinsics[:, :, None, None, :, 3]
        torch.testing.assert_close(local, outputs["local_points"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(local[..., 2], result.depth, atol=1e-5, rtol=1e-5)
        assert torch.equal(result.confidence, outputs["conf"][..., 0].sigmoid())

    @pytest.mark.parametrize(
        ("change", "point_source", "message"),
        [
            ({"pose_enc": None}, "point_head", "needs pose_enc and one of world_points and depth"),
            ({"depth": None, "world_points": None}, "point_head", "needs pose_enc and one of"),
            ({"depth": None}, "depth", 'point_source is "depth" but the outputs have no depth'),
        ],
    )
    def test_vggt_bad_input(self, change: dict[str, None], point_source: Any, message: str) -> None:
        outputs = TinyVGGT().eval()(images()) | change
        with pytest.raises(ValueError, match=message):
            VggtBackbone().reconstruct(outputs, point_source)
