from __future__ import annotations

import torch
from golden_weights import fill_weights
from torch.nn import functional as F

from hess_plugin.models.camera_head import CameraHead


def head() -> CameraHead:
    return fill_weights(CameraHead(64, trunk_depth=2, num_heads=4, layer_scale_init=1.0))


def test_shapes_and_ranges():
    poses = head()(torch.randn(2, 5, 64))
    assert [pose.shape for pose in poses] == [(2, 5, 9)] * 4
    assert all((pose[..., 7:] >= 0).all() for pose in poses)
    assert any((pose[..., :7] < 0).any() for pose in poses)


def test_views_share_one_attention_but_no_order():
    camera_head, tokens = head(), torch.randn(1, 4, 64)
    order = [2, 0, 3, 1]
    poses = camera_head(tokens)[-1]
    torch.testing.assert_close(camera_head(tokens[:, order])[-1], poses[:, order], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(camera_head(tokens[:, :3])[-1], poses[:, :3], atol=1e-3)


def test_refinement_accumulates_the_pose_before_the_relu():
    """With corrections of -1 and then 3 in every entry the fields of view end at relu(-1 + 3 + 3 + 3)."""
    camera_head, corrections = head(), iter((-1.0, 3.0, 3.0, 3.0))
    camera_head.pose_branch.forward = lambda x: torch.full((*x.shape[:-1], 9), next(corrections))
    poses = camera_head(torch.randn(1, 2, 64))
    assert [pose[0, 0, 0].item() for pose in poses] == [-1, 2, 5, 8]
    assert [pose[0, 0, 8].item() for pose in poses] == [0, 2, 5, 8]


def test_gradients_do_not_pass_through_earlier_poses():
    """Embedding and trunk see detached poses, so the pose embedding's input carries no gradient."""
    camera_head, inputs = head(), []
    camera_head.embed_pose.forward = lambda pose: (
        inputs.append(pose) or F.linear(pose, camera_head.embed_pose.weight, camera_head.embed_pose.bias)
    )
    tokens = torch.randn(1, 2, 64, requires_grad=True)
    camera_head(tokens)[-1].sum().backward()
    assert tokens.grad.abs().sum() > 0
    assert [pose.requires_grad for pose in inputs] == [True, False, False, False]  # the first is a parameter


def test_half_precision_weights_give_float32_poses():
    camera_head, tokens = head(), torch.randn(1, 3, 64)
    exact = camera_head(tokens)[0]
    rounded = camera_head.bfloat16()(tokens)[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)
