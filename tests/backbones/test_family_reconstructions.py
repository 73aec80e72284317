"""Output conventions of the further families by hand: where a pixel's point lies, where the cameras stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import TinyVGGT
from doubles_family import TinyPi3X, TinyStreamVGGT, TinyVGGTOmega
from doubles_views import TinyDepthAnything3, TinyMapAnything
from families import images
from torch import Tensor

from hess_plugin.backbones import Reconstruction, find_backbone
from hess_plugin.backbones.depth_anything3 import DepthAnything3Backbone
from hess_plugin.backbones.map_anything import MapAnythingBackbone
from hess_plugin.backbones.vggt import VggtBackbone
from hess_plugin.backbones.vggt_omega import VggtOmegaBackbone
from hess_plugin.geometry.cameras import camera_centers, decode_pose


def in_cameras(result: Reconstruction) -> Tensor:
    """The points of each view in its own camera, R x + t."""
    turned = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
    return turned + result.extrinsics[:, :, None, None, :, 3]


def assert_pixels(result: Reconstruction, intrinsics: Tensor) -> None:
    """Every point projects onto the pixel that it belongs to."""
    local = in_cameras(result)
    pixel = torch.einsum("bvij,bvhwj->bvhwi", intrinsics, local / local[..., 2:])
    height, width = local.shape[2:4]
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    expected = torch.stack([u, v, torch.ones_like(u)], dim=-1).float().expand_as(pixel)
    torch.testing.assert_close(pixel, expected, atol=2e-3, rtol=1e-4)


class TestPi3X:
    def test_metric_scale_is_applied_once(self) -> None:
        """Scale in the outputs: poses, points and camera points agree with each other as they are."""
        torch.manual_seed(0)
        model = TinyPi3X().eval()
        with torch.no_grad():
            model.metric_head.bias.fill_(1)
        outputs = model(images())
        assert outputs["metric"].item() > 2
        result = find_backbone(model).reconstruct(outputs)
        torch.testing.assert_close(in_cameras(result), outputs["local_points"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(camera_centers(result.extrinsics), outputs["camera_poses"][..., :3, 3])
        assert torch.equal(result.confidence, outputs["conf"][..., 0].sigmoid())


class TestVggtOmega:
    @pytest.mark.parametrize("channel", [True, False])
    def test_by_hand(self, channel: bool) -> None:
        """A camera at z = -2, 90 degrees wide, sees a wall at z = 1; depth with or without a channel axis."""
        depth = torch.full((1, 1, 2, 4), 3.0)
        outputs = {
            "pose_enc": torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, torch.pi / 2, torch.pi / 2]).view(
                1, 1, 9
            ),
            "depth": depth[..., None] if channel else depth,
            "depth_conf": torch.full((1, 1, 2, 4), 7.0),
        }
        result = VggtOmegaBackbone().reconstruct(outputs)  # "point_head" is the default; there is none
        torch.testing.assert_close(result.points[0, 0, 0, 0], torch.tensor([-3.0, -3.0, 1.0]))
        torch.testing.assert_close(camera_centers(result.extrinsics[0, 0]), torch.tensor([0.0, 0.0, -2.0]))
        assert (result.depth.unique().item(), result.confidence.unique().item()) == (3, 7)

    def test_points_project_to_their_pixels(self) -> None:
        torch.manual_seed(0)
        model = TinyVGGTOmega().eval()
        outputs = model(images())
        _, intrinsics = decode_pose(outputs["pose_enc"], (12, 20))
        assert_pixels(find_backbone(model).reconstruct(outputs), intrinsics)

    def test_narrowest_view_is_finite(self) -> None:
        """VGGT's field of view may be 0, an infinite focal length; here 0.01 is added to it."""
        torch.manual_seed(0)
        model = TinyVGGTOmega().eval()
        with torch.no_grad():
            model.camera_head.pose_branch.bias[7:] = -1
        outputs = model(images())
        assert outputs["pose_enc"][..., 7:].unique().item() == pytest.approx(0.01)
        assert find_backbone(model).reconstruct(outputs).points.isfinite().all()


class TestStreamVggt:
    def test_views_are_packed_again(self) -> None:
        torch.manual_seed(0)
        model = TinyStreamVGGT().eval()
        backbone = find_backbone(model)
        packed = TinyVGGT.forward(model, images())
        for source in ("point_head", "depth"):
            expected = VggtBackbone().reconstruct(packed, source)
            outputs = backbone.predict(model, images())
            for form in (outputs, outputs["ress"]):
                result = backbone.reconstruct(form, source)
                for name in ("extrinsics", "points", "confidence", "depth"):
                    assert torch.equal(getattr(result, name), getattr(expected, name))

    def test_later_views_do_not_change_earlier_ones(self) -> None:
        torch.manual_seed(0)
        model = TinyStreamVGGT().eval()
        backbone = find_backbone(model)
        photos = images(views=3)
        changed = torch.cat([photos[:, :2], 1 - photos[:, 2:]], dim=1)
        one, other = (backbone.reconstruct(backbone.predict(model, x)) for x in (photos, changed))
        torch.testing.assert_close(one.points[:, :2], other.points[:, :2])
        assert not torch.allclose(one.points[:, 2], other.points[:, 2])


class TestDepthAnything3:
    def test_by_hand(self) -> None:
        """World-to-camera: the camera stands at x = 3 and sees, straight ahead, a wall two units away."""
        extrinsics = torch.eye(4).repeat(1, 1, 1, 1)
        extrinsics[..., 0, 3] = -3
        intrinsics = torch.tensor([[2.0, 0, 1], [0, 4, 0], [0, 0, 1]]).view(1, 1, 3, 3)
        outputs = {
            "depth": torch.full((1, 1, 2, 4), 2.0),
            "depth_conf": torch.full((1, 1, 2, 4), 5.0),
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
        }
        for rows in (3, 4):  # [R | t], or with a last row 0 0 0 1
            result = DepthAnything3Backbone().reconstruct(outputs | {"extrinsics": extrinsics[..., :rows, :]})
            torch.testing.assert_close(result.points[0, 0, 1, 1], torch.tensor([3.0, 0.5, 2.0]))
            torch.testing.assert_close(camera_centers(result.extrinsics[0, 0]), torch.tensor([3.0, 0, 0]))
            assert (result.depth.unique().item(), result.confidence.unique().item()) == (2, 5)
            assert_pixels(result, intrinsics)

    @pytest.mark.parametrize("name", ["da3-tiny", "da3nested-tiny"])
    def test_predict_is_the_forward_with_gradients(self, name: str) -> None:
        """On normalised images; for the nested model up to its metric scale."""
        torch.manual_seed(0)
        model = TinyDepthAnything3(name).eval()
        backbone = find_backbone(model)
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        public = model((images() - mean) / deviation)
        assert not public["depth"].requires_grad
        inner = backbone.predict(model, images())
        assert inner["depth"].requires_grad
        scale = (public["depth"] / inner["depth"].detach()).clone()
        torch.testing.assert_close(scale, scale.mean().expand_as(scale))
        if name == "da3-tiny":
            assert torch.equal(scale, torch.ones_like(scale))
        assert_pixels(backbone.reconstruct(inner), inner["intrinsics"])

    def test_monocular_outputs_are_refused(self) -> None:
        with pytest.raises(ValueError, match="needs extrinsics, intrinsics, got outputs depth, depth_conf"):
            DepthAnything3Backbone().reconstruct(TinyDepthAnything3("da3mono-tiny")(images()))


class TestMapAnything:
    def test_by_hand(self) -> None:
        """Camera-to-world, scalar last: a camera at x = 5 turned by a quarter about +y looks along +x."""
        half = 0.5**0.5
        view = {
            "pts3d": torch.tensor([8.0, 1.0, -2.0]).expand(1, 2, 4, 3),
            "conf": torch.full((1, 2, 4), 6.0),
            "cam_trans": torch.tensor([[5.0, 0.0, 0.0]]),
            "cam_quats": torch.tensor([[0.0, half, 0.0, half]]),
        }
        result = MapAnythingBackbone().reconstruct([view, view | {"pts3d": view["pts3d"] + 1}])
        torch.testing.assert_close(camera_centers(result.extrinsics)[0], torch.tensor([[5.0, 0, 0]] * 2))
        # ahead by 8 - 5 along +x, down by 1 along +y, and camera +x is world -z
        torch.testing.assert_close(in_cameras(result)[0, 0, 0, 0], torch.tensor([2.0, 1.0, 3.0]))
        torch.testing.assert_close(result.depth[0, :, 0, 0], torch.tensor([3.0, 4.0]))
        assert result.confidence.unique().item() == 6

    def test_world_and_camera_points_agree(self) -> None:
        torch.manual_seed(0)
        model = TinyMapAnything().eval()
        backbone = find_backbone(model)
        outputs = backbone.predict(model, images())
        local = torch.stack([view["pts3d_cam"] for view in outputs], dim=1)
        torch.testing.assert_close(in_cameras(backbone.reconstruct(outputs)), local, atol=1e-5, rtol=1e-4)

    def test_images_are_normalised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, seen = TinyMapAnything().eval(), []
        monkeypatch.setattr(TinyMapAnything, "forward", lambda self, views: seen.extend(views))
        find_backbone(model).predict(model, torch.full((2, 3, 3, 4, 4), 0.5))
        assert [view["data_norm_type"] for view in seen] == [["dinov2"]] * 3
        for view in seen:
            assert view["img"].shape == (2, 3, 4, 4)
            expected = torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225])
            torch.testing.assert_close(view["img"][0, :, 0, 0], expected, atol=1e-6, rtol=1e-4)

    def test_unknown_normalisation_is_refused(self) -> None:
        model = TinyMapAnything()
        model.encoder.data_norm_type = "radio"
        with pytest.raises(ValueError, match="normalised for 'radio', known are dinov2, dinov3"):
            find_backbone(model).predict(model, images())

    def test_outputs_without_poses_are_refused(self) -> None:
        view: dict[str, Any] = {"pts3d": torch.zeros(1, 2, 4, 3), "conf": torch.zeros(1, 2, 4)}
        with pytest.raises(ValueError, match="the outputs lack cam_quats, cam_trans"):
            MapAnythingBackbone().reconstruct([view])
