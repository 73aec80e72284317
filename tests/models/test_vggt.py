from __future__ import annotations

import ast

import pytest
import torch
from golden_weights import (
    build_filled,
    golden_images,
    golden_keys,
    golden_tensors,
    relative_error,
    thinned,
)
from torch import Tensor, nn
from vggt_helpers import MAPS, tiny_config

from hess_plugin.models import VggtConfig, VggtModel

GOLDEN_CONFIGS = {
    "vggt_small": VggtConfig(
        img_size=224,
        embed_dim=384,
        depth=4,
        num_heads=6,
        patch_embed="dinov2_vits14_reg",
        camera_trunk_depth=2,
        camera_num_heads=8,
        dpt_features=64,
        dpt_out_channels=(48, 96, 192, 384),
        dpt_layers=(0, 1, 2, 3),
        enable_track=False,
    ),
    "vggt_1b": VggtConfig(),
}


def golden_errors(file: str, model: VggtModel, *inputs: Tensor) -> dict[str, float]:
    """Relative error of every tensor stored in a golden file."""
    stored, metadata = golden_tensors(file)
    ours = {}
    for name, index in (("global_block_0", 0), ("global_block_last", -1)):
        model.aggregator.global_blocks[index].register_forward_hook(
            lambda block, args, out, name=name: ours.__setitem__(f"inter.{name}", out)
        )
    with torch.no_grad():
        out = model(*inputs)
    ours |= {f"out.{key}": value for key, value in out.items()} | dict(out)
    return {
        name: relative_error(thinned(name, ours[name], metadata), value) for name, value in stored.items()
    }


class TestGolden:
    @pytest.mark.parametrize("variant", GOLDEN_CONFIGS)
    def test_state_dict_equals_the_original(self, variant):
        with torch.device("meta"):
            model = VggtModel(GOLDEN_CONFIGS[variant])
        ours = {name: list(value.shape) for name, value in model.state_dict().items()}
        assert list(ours.items()) == list(golden_keys(variant).items())

    def test_small(self):
        model = build_filled(VggtModel, GOLDEN_CONFIGS["vggt_small"])
        errors = golden_errors("vggt_small", model, golden_images(golden_tensors("vggt_small")[1]))
        assert len(errors) == 7
        assert max(errors.values()) < 1e-5, errors

    @pytest.mark.slow
    def test_1b(self):
        model = build_filled(VggtModel, GOLDEN_CONFIGS["vggt_1b"])
        errors = golden_errors("vggt_1b", model, golden_images(golden_tensors("vggt_1b")[1]))
        assert len(errors) == 7
        assert max(errors.values()) < 1e-4, errors

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("file", "iterations", "dtype", "bounds"),
        [
            ("vggt_1b_track", 4, torch.float32, {"track": 2.5e-3, "vis": 5e-2, "conf": 1e-1}),
            ("vggt_1b_track_one_iteration", 1, torch.float64, {"track": 1e-6, "vis": 1e-6, "conf": 1e-6}),
        ],
    )
    def test_track(self, file, iterations, dtype, bounds):
        model = build_filled(VggtModel, VggtConfig(track_iterations=iterations)).to(dtype)
        metadata = golden_tensors(file)[1]
        points = torch.tensor(ast.literal_eval(metadata["query_points_xy_pixels"]), dtype=dtype)
        errors = golden_errors(file, model, golden_images(metadata).to(dtype), points)
        assert errors.keys() == bounds.keys()
        assert all(errors[name] < bound for name, bound in bounds.items()), errors


def test_norm_epsilons():
    """The golden outputs cannot tell these apart, so they are read."""
    with torch.device("meta"):
        model = VggtModel(VggtConfig())
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            small = name == "camera_head.adaln_norm" or name.startswith("aggregator.patch_embed.")
            assert module.eps == (1e-6 if small else 1e-5), name


@pytest.mark.usefixtures("without_gradients")
class TestShapes:
    @pytest.mark.parametrize("shape", [(1, 3, 8, 8), (5, 3, 16, 24), (2, 3, 40, 16), (2, 3, 3, 24, 8)])
    def test_output_shapes(self, tiny_vggt, shape):
        out = tiny_vggt(torch.rand(shape))
        batch, views, _, height, width = (1, *shape)[-5:]
        assert list(out) == [
            *("pose_enc", "pose_enc_list", *MAPS, "images", "extrinsics", "intrinsics"),
        ]
        assert out.pose_enc.shape == (batch, views, 9)
        assert [pose.shape for pose in out.pose_enc_list] == [(batch, views, 9)] * 4
        assert out.depth.shape == (batch, views, height, width, 1)
        assert out.world_points.shape == (batch, views, height, width, 3)
        assert out.depth_conf.shape == out.world_points_conf.shape == (batch, views, height, width)
        assert out.images.shape == (batch, views, 3, height, width)
        assert out.extrinsics.shape == (batch, views, 3, 4)
        assert out.intrinsics.shape == (batch, views, 3, 3)
        assert all(out[name].isfinite().all() for name in MAPS)

    def test_scenes_of_a_batch_do_not_mix(self, tiny_vggt, vggt_images):
        together = tiny_vggt(vggt_images)
        for index in range(2):
            alone = tiny_vggt(vggt_images[index])
            for name in ("pose_enc", *MAPS, "extrinsics"):
                assert relative_error(together[name][index : index + 1], alone[name]) < 1e-5

    def test_only_the_first_view_is_special(self, tiny_vggt, vggt_images):
        """Views after the first may change places; another first view gives another world."""
        base, swapped, other = (
            tiny_vggt(vggt_images[:, order]) for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2])
        )
        assert relative_error(swapped.world_points[:, [0, 2, 1]], base.world_points) < 1e-5
        assert relative_error(other.world_points[:, [1, 0, 2]], base.world_points) > 1e-2

    def test_views_inform_each_other(self, tiny_vggt, vggt_images):
        assert relative_error(tiny_vggt(vggt_images[:, :2]).depth, tiny_vggt(vggt_images).depth[:, :2]) > 1e-3

    @pytest.mark.parametrize("absent", ["camera", "point", "depth"])
    def test_absent_heads(self, absent, vggt_images):
        model = VggtModel(tiny_config(**{f"enable_{absent}": False})).eval()
        assert not any(key.startswith(f"{absent}_head") for key in model.state_dict())
        missing = {"camera": "pose_enc", "point": "world_points", "depth": "depth"}[absent]
        out = model(vggt_images)
        assert out[missing] is None if missing in out else getattr(out, missing) is None

    def test_keeps_only_the_layers_that_heads_read(self, tiny_vggt, vggt_images):
        assert sorted(tiny_vggt.aggregator(vggt_images)) == [0, 1, 3, 4]

    def test_tracks(self, vggt_images):
        model = build_filled(VggtModel, tiny_config(enable_track=True, track_iterations=1))
        images = nn.functional.interpolate(vggt_images[0], (128, 136))
        out = model(images, torch.tensor([[10.0, 20.0], [100.5, 3.0]]))
        assert out.track.shape == (1, 3, 2, 2)
        assert out.vis.shape == out.conf.shape == (1, 3, 2)
        assert out.track[0, 0].tolist() == [[10.0, 20.0], [100.5, 3.0]]
        assert model(images).track is None


class TestBadInput:
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.zeros(3, 16, 16), r"images must be \[V, 3, height, width\] or .*, got \[3, 16, 16\]"),
            (torch.zeros(2, 4, 16, 16), r"got \[2, 4, 16, 16\]"),
            (torch.zeros(0, 3, 16, 16), r"got \[0, 3, 16, 16\]"),
            (torch.zeros(2, 3, 16, 20), "multiples of the patch size 8, got 16 x 20; crop or resize"),
            (
                torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
                "floating point in .*, got torch.uint8; divide",
            ),
        ],
    )
    def test_images(self, tiny_vggt, images, message):
        with pytest.raises(ValueError, match=message):
            tiny_vggt(images)

    def test_points_without_track_head(self, tiny_vggt):
        with pytest.raises(ValueError, match=r"model without track head \(enable_track=False\)"):
            tiny_vggt(torch.zeros(1, 3, 128, 128), torch.zeros(1, 2))

    @pytest.mark.parametrize(
        ("size", "points", "message"),
        [
            ((128, 120), (4, 2), "at least 128 pixels a side, got 128 x 120"),
            ((128, 128), (4, 3), r"query_points must be \[N, 2\] .*, got \[1, 4, 3\]"),
            ((128, 128), (2, 4, 2), r"with B = 1 as images have, got \[2, 4, 2\]"),
        ],
    )
    def test_points(self, size, points, message):
        with torch.device("meta"):
            model = VggtModel(tiny_config(enable_track=True))
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(1, 3, *size), torch.zeros(points))
