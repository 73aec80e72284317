"""VGGT in use: chunks, loading and saving, precision, training."""

from __future__ import annotations

import copy
import json
import pickle
import weakref

import pytest
import torch
from golden_weights import build_filled, relative_error
from safetensors.torch import save_file
from transformers import AutoModel
from vggt_helpers import MAPS, assert_same, tiny_config

from hess_plugin.models import VggtConfig, VggtModel, VggtOutput
from hess_plugin.models.encoder import IMAGE_MEAN, IMAGE_STD
from hess_plugin.models.layers import in_chunks, results_on


class TestChunks:
    @pytest.mark.parametrize("chunk_size", [1, 4, 100])
    def test_results_do_not_depend_on_them(self, vggt_images, chunk_size):
        """Outputs and gradients, in float64 because rounding of gradients differs with the chunks."""
        model = build_filled(VggtModel, tiny_config()).double()
        outs, gradients = [], []
        for size in (2, chunk_size):
            model.frames_chunk_size = size
            model.zero_grad()
            outs.append(model(vggt_images.double()))
            (outs[-1].depth.mean() + outs[-1].world_points.mean()).backward()
            gradients.append(model.aggregator.camera_token.grad)
        assert_same(outs[1], outs[0], tolerance=1e-10)
        assert relative_error(gradients[1], gradients[0]) < 1e-10


class TestOutputDevice:
    """The device without memory stands for another one."""

    @pytest.mark.parametrize("gradients", [False, True])
    def test_outputs_go_there(self, tiny_vggt, vggt_images, gradients):
        with torch.set_grad_enabled(gradients):
            here = tiny_vggt(vggt_images)
            there = tiny_vggt(vggt_images, output_device="meta")
        assert list(there) == list(here)
        for name, value in there.items():
            pair = ([x] if torch.is_tensor(x) else x for x in (value, here[name]))
            for moved, kept in zip(*pair, strict=True):
                assert moved.device.type == ("cpu" if name == "images" else "meta"), name
                assert moved.shape == kept.shape
        assert_same(tiny_vggt(vggt_images, output_device="cpu"), here, tolerance=0)

    def test_no_two_chunks_are_kept(self):
        made = []

        def head(chunk: torch.Tensor) -> tuple[torch.Tensor, ...]:
            assert not any(ref() is not None for ref in made[:-1])  # at most the last one
            result = chunk + 1
            made.append(weakref.ref(result))
            return (result,)

        with torch.no_grad():
            (out,) = in_chunks(results_on("meta", head), torch.zeros(7, 3), 2)
        assert out.shape == (7, 3)
        assert out.device.type == "meta"
        assert len(made) == 4


# Loaded weights lie elsewhere in memory, which matrix products of some CPUs show in the last bit.
ROUNDING = 1e-6


class TestLoading:
    def test_round_trip(self, tiny_vggt, vggt_images, tmp_path):
        tiny_vggt.save_pretrained(tmp_path)
        for loader in (VggtModel, AutoModel):
            loaded = loader.from_pretrained(tmp_path)
            assert type(loaded) is VggtModel
            assert_same(loaded(vggt_images), tiny_vggt(vggt_images), tolerance=ROUNDING)

    def test_original_repository(self, tiny_vggt, vggt_images, tmp_path):
        """Weights beside a config.json without `model_type`, as the original's loader writes it."""
        settings = {
            k: v for k, v in tiny_vggt.config.to_diff_dict().items() if k in VggtConfig.__annotations__
        }
        assert "model_type" not in settings
        (tmp_path / "config.json").write_text(json.dumps(settings))
        save_file(tiny_vggt.state_dict(), tmp_path / "model.safetensors")
        loaded, info = VggtModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same(loaded(vggt_images), tiny_vggt(vggt_images), tolerance=ROUNDING)

    def test_constants_that_no_checkpoint_holds(self, tiny_vggt, tmp_path):
        """Buffers outside the state dict come back from the loader as uninitialised memory unless filled."""
        tiny_vggt.save_pretrained(tmp_path)
        loaded = VggtModel.from_pretrained(tmp_path)
        assert loaded.aggregator._resnet_mean.flatten().tolist() == pytest.approx(IMAGE_MEAN)
        assert loaded.aggregator._resnet_std.flatten().tolist() == pytest.approx(IMAGE_STD)
        assert not any("_resnet" in key for key in loaded.state_dict())

    def test_parts_left_on_disk(self, tiny_vggt, vggt_images, tmp_path):
        tiny_vggt.save_pretrained(tmp_path)
        places = {"aggregator": "cpu", "camera_head": "disk", "point_head": "disk", "depth_head": "cpu"}
        loaded = VggtModel.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "parts")
        assert_same(loaded(vggt_images), tiny_vggt(vggt_images), tolerance=ROUNDING)

    def test_copies(self, tiny_vggt, vggt_images):
        expected = tiny_vggt(vggt_images)
        for clone in (copy.deepcopy(tiny_vggt), pickle.loads(pickle.dumps(tiny_vggt))):
            assert_same(clone(vggt_images), expected, tolerance=0)
            assert clone.aggregator.camera_token is not tiny_vggt.aggregator.camera_token


@pytest.mark.usefixtures("without_gradients")
class TestPrecision:
    def test_half_precision_load_keeps_the_heads(self, tiny_vggt, vggt_images, tmp_path):
        tiny_vggt.save_pretrained(tmp_path)
        loaded = VggtModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        dtypes = {name.split(".")[0]: p.dtype for name, p in loaded.named_parameters()}
        heads = ("camera_head", "point_head", "depth_head")
        assert dtypes == {"aggregator": torch.bfloat16, **dict.fromkeys(heads, torch.float32)}
        self.assert_close_in_float32(loaded(vggt_images), tiny_vggt(vggt_images))

    def test_half_precision_everywhere(self, tiny_vggt, vggt_images):
        rounded = copy.deepcopy(tiny_vggt).bfloat16()
        self.assert_close_in_float32(rounded(vggt_images), tiny_vggt(vggt_images))
        self.assert_close_in_float32(rounded(vggt_images.bfloat16()), tiny_vggt(vggt_images))

    def test_heads_stay_in_float32_under_autocast(self, vggt_images):
        model = build_filled(VggtModel, tiny_config())
        expected = model(vggt_images)
        seen = []
        model.depth_head.scratch.output_conv1.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(vggt_images)
        assert set(seen) == {torch.float32}
        self.assert_close_in_float32(out, expected)

    def assert_close_in_float32(self, out: VggtOutput, expected: VggtOutput) -> None:
        for name in ("pose_enc", *MAPS):
            assert out[name].dtype == torch.float32
            assert 0 < relative_error(out[name], expected[name]) < 0.2


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpointing_changes_no_gradient(vggt_images):
    model = build_filled(VggtModel, tiny_config()).train()
    calls = []
    for block in (model.aggregator.frame_blocks[0], model.aggregator.global_blocks[1]):
        block.mlp.register_forward_hook(lambda *_: calls.append(1))
    gradients, num_calls = [], []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        calls.clear()
        model.zero_grad()
        out = model(vggt_images)
        assert out.images is None
        (out.pose_enc.sum() + out.depth.mean() + out.world_points.mean()).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        num_calls.append(len(calls))
    assert num_calls == [2, 4]  # with checkpointing each block runs again in the backward pass
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_initial_model_can_learn(vggt_images):
    """From fresh weights, gradients reach every parameter."""
    model = VggtModel(tiny_config(layer_scale_init=0.1)).train()
    scales = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert all(torch.equal(scale, torch.full_like(scale, 0.1)) for scale in scales)
    out = model(vggt_images)
    loss = sum(pose[..., :7].square().sum() for pose in out.pose_enc_list)
    (loss + sum(out[name].square().mean() for name in MAPS)).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@torch.no_grad()
def test_compiles_without_graph_breaks(vggt_images):
    model = build_filled(VggtModel, tiny_config(depth=2, dpt_layers=(0, 0, 1, 1)))
    compiled = torch.compile(model.aggregator, backend="eager", fullgraph=True)
    for layer, tokens in model.aggregator(vggt_images).items():
        assert relative_error(compiled(vggt_images)[layer], tokens) < 1e-6
