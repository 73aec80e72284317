"""What the tests of VGGT share beside the fixtures in conftest.py."""

from __future__ import annotations

import torch
from golden_weights import relative_error

from hess_plugin.models import VggtConfig, VggtOutput

MAPS = ("depth", "depth_conf", "world_points", "world_points_conf")


def tiny_config(**changes: object) -> VggtConfig:
    """Real classes, few and narrow layers, another patch size and heads of 16."""
    settings: dict[str, object] = {
        **dict(patch_size=8, embed_dim=48, depth=5, num_heads=3, patch_embed="conv"),
        **dict(camera_trunk_depth=1, camera_num_heads=3, dpt_features=16, dpt_out_channels=(8, 8, 16, 16)),
        **dict(dpt_layers=(0, 1, 3, 3), enable_track=False),
    }
    return VggtConfig(**{**settings, **changes})


def assert_same(ours: VggtOutput, expected: VggtOutput, tolerance: float = 1e-5) -> None:
    assert list(ours) == list(expected)
    for name, value in expected.items():
        if name == "intrinsics":  # infinite where the field of view is 0, which these weights give
            torch.testing.assert_close(ours[name], value)
        elif name not in ("pose_enc_list", "images"):
            assert relative_error(ours[name], value) <= tolerance, name
