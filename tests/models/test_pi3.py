from __future__ import annotations

import pytest
import torch
from golden_weights import golden_images, golden_keys, golden_tensors, relative_error, thinned
from pi3_helpers import fill_golden_weights, images
from torch import nn
from transformers.initialization import no_init_weights

from hess_plugin.models.configuration import Pi3Config
from hess_plugin.models.image_processing import Pi3ImageProcessor
from hess_plugin.models.layers import Block
from hess_plugin.models.pi3 import Pi3Model

GOLDEN_CONFIGS = {
    "pi3_small": Pi3Config(
        decoder_embed_dim=384, decoder_depth=24, decoder_num_heads=6, patch_embed="dinov2_vits14_reg"
    ),
    "pi3": Pi3Config(),
}
KEYS = ["points", "local_points", "conf", "camera_poses", "extrinsics"]


def check_golden(variant: str, limit: float) -> None:
    with no_init_weights():
        model = Pi3Model(GOLDEN_CONFIGS[variant]).eval()
    fill_golden_weights(model)
    found = {}
    for name, index in (("inter.decoder_1", 1), ("inter.decoder_last", -1)):
        model.decoder[index].register_forward_hook(
            lambda module, args, output, name=name: found.update({name: output})
        )
    expected, metadata = golden_tensors(variant)
    with torch.no_grad():
        out = model(golden_images(metadata))
    found.update({f"out.{key}": value for key, value in out.items()})
    errors = {k: relative_error(thinned(k, found[k], metadata), value) for k, value in expected.items()}
    print({key: f"{error:.1e}" for key, error in errors.items()})
    assert len(errors) == 6
    assert max(errors.values()) < limit, errors


def test_golden_small():
    check_golden("pi3_small", 1e-5)


@pytest.mark.slow
def test_golden_published_size():
    check_golden("pi3", 1e-4)


@pytest.mark.parametrize("variant", GOLDEN_CONFIGS)
def test_state_dict_equals_the_original(variant):
    with torch.device("meta"):
        model = Pi3Model(GOLDEN_CONFIGS[variant])
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == golden_keys(variant)


def test_norm_eps():
    """The golden outputs hardly feel the eps of the small decoders and of qk-norm."""
    with torch.device("meta"):
        model = Pi3Model(GOLDEN_CONFIGS["pi3_small"])
    norms = {name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 12 * 2 + 1 + 24 * 4 + 3 * 5 * 2
    for name, eps in norms.items():
        assert eps == (1e-5 if name.endswith(("q_norm", "k_norm")) else 1e-6), name


@pytest.mark.parametrize(
    ("num_sets", "num_views", "height", "width"),
    [(1, 1, 42, 56), (1, 5, 42, 28), (2, 3, 28, 42), (1, 2, 70, 70), (2, 1, 14, 14)],
)
def test_shapes(tiny_pi3, num_sets, num_views, height, width):
    out = tiny_pi3(images(num_sets, num_views, 3, height, width))
    lead, size = (num_sets, num_views), (height, width)
    assert list(out) == KEYS
    assert out.points.shape == out.local_points.shape == (*lead, *size, 3)
    assert out.conf.shape == (*lead, *size, 1)
    assert out.camera_poses.shape == (*lead, 4, 4)
    assert out.extrinsics.shape == (*lead, 3, 4)
    assert all(out[key].isfinite().all() for key in KEYS)


def test_properties(tiny_pi3):
    imgs = images(2, 3, 3, 28, 42)
    out = tiny_pi3(imgs)
    rotation = out.camera_poses[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(2, 3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, 3))
    assert torch.equal(out.camera_poses[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(2, 3, 4))
    # extrinsics bring world points back into the camera.
    points = torch.einsum("bvij,bvhwj->bvhwi", out.extrinsics[..., :3], out.points)
    points = points + out.extrinsics[..., None, None, :, 3]
    torch.testing.assert_close(points, out.local_points, atol=1e-4, rtol=1e-4)
    assert (out.local_points[..., 2] > 0).all()
    # Sets do not see each other; no view is special; without a batch axis there is one set.
    for index in range(2):
        alone = tiny_pi3(imgs[index])
        turned = tiny_pi3(imgs[index : index + 1].flip(1))
        for key in KEYS:
            torch.testing.assert_close(alone[key], out[key][index : index + 1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(turned[key].flip(1), alone[key], atol=1e-4, rtol=1e-4)
    # Views of a set do see each other.
    changed = imgs.clone()
    changed[0, 2] = 0
    assert not torch.allclose(tiny_pi3(changed).conf[0, 0], out.conf[0, 0], atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_result_does_not_depend_on_the_chunk_size(tiny_pi3, chunk, monkeypatch):
    imgs = images(1, 5, 3, 28, 42)
    expected = tiny_pi3(imgs)
    calls = []
    tiny_pi3.point_head.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    monkeypatch.setattr(tiny_pi3, "frames_chunk_size", chunk)
    out = tiny_pi3(imgs)
    assert calls == [min(chunk, 5 - start) for start in range(0, 5, chunk)]
    for key in KEYS:
        torch.testing.assert_close(out[key], expected[key], atol=1e-5, rtol=1e-5)


def test_output_device(tiny_pi3):
    imgs = images(1, 9, 3, 28, 28)
    with torch.inference_mode():
        here, there = tiny_pi3(imgs), tiny_pi3(imgs, output_device="meta")
    assert list(there) == list(here)
    assert {value.device.type for value in there.values()} == {"meta"}
    assert all(there[key].shape == here[key].shape for key in here)


def test_bad_input(tiny_pi3):
    for shape in [(3, 28, 28), (1, 2, 4, 28, 28), (1, 0, 3, 28, 28), (1, 1, 1, 3, 28, 28)]:
        with pytest.raises(ValueError, match=r"imgs must be \[V, 3, height, width\] or .*, got \["):
            tiny_pi3(torch.zeros(shape))
    with pytest.raises(ValueError, match="multiples of the patch size 14, got 28 x 41"):
        tiny_pi3(torch.zeros(2, 3, 3, 28, 41))
    with pytest.raises(ValueError, match=r"floating point in \[0, 1\], got torch.uint8"):
        tiny_pi3(torch.zeros(1, 1, 3, 28, 28, dtype=torch.uint8))


def test_takes_what_the_image_processor_gives(tiny_pi3):
    photo = images(40, 60, 3).numpy()
    out = tiny_pi3(**Pi3ImageProcessor(pixel_limit=3000)([photo, photo]))
    assert out.points.shape == (1, 2, 42, 70, 3)


def gradients(model: Pi3Model, imgs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = model(imgs)
    (out.points.square().mean() + out.conf.sigmoid().mean() + out.camera_poses.square().mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradient_checkpointing(tiny_pi3):
    imgs = images(1, 2, 3, 28, 28)
    expected = gradients(tiny_pi3.train(), imgs)
    assert all(grad.isfinite().all() for grad in expected.values())
    assert all(expected[f"decoder.{i}.attn.qkv.weight"].abs().max() > 0 for i in range(4))
    tiny_pi3.activation_checkpointing_enable()
    runs = []
    tiny_pi3.decoder[1].mlp.register_forward_hook(lambda *args: runs.append(1))
    actual = gradients(tiny_pi3, imgs)
    assert len(runs) == 2  # forward, and once more for the gradient
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, msg=name)


def test_keeps_only_the_outputs_of_the_last_two_blocks(tiny_pi3):
    held = []
    for block in tiny_pi3.decoder:
        block.register_forward_hook(lambda module, args, output: held.append(output))
    imgs = images(1, 2, 3, 28, 28)
    with torch.no_grad():
        out = tiny_pi3(imgs)
        previous, last = tiny_pi3._backbone(imgs, (2, 2))
    assert len(held) == 8
    assert torch.equal(previous.flatten(), held[6].flatten())
    assert torch.equal(last.flatten(), held[7].flatten())
    assert list(out) == KEYS


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(tiny_pi3, how):
    imgs = images(1, 3, 3, 28, 42)
    with torch.no_grad():
        expected = tiny_pi3(imgs)
        if how == "weights":
            out = tiny_pi3.to(torch.bfloat16)(imgs.bfloat16())
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = tiny_pi3(imgs)
    for key in KEYS:
        assert out[key].dtype == torch.float32
        assert 0 < relative_error(out[key], expected[key]) < 0.1, key
    rotation = out.camera_poses[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(1, 3, 3, 3), atol=1e-5, rtol=0)


def test_rope_runs_in_bfloat16_under_autocast(tiny_pi3):
    """As in the original, and as the attention that replaces this one does."""
    seen = set()
    for block in tiny_pi3.decoder:
        rope = block.attn.rope
        block.attn.rope = lambda t, pos, rope=rope: seen.add(t.dtype) or rope(t, pos)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tiny_pi3(images(1, 2, 3, 28, 28))
    assert seen == {torch.bfloat16}


def test_training_from_scratch_starts_finite_and_alive(tiny_pi3_config):
    torch.manual_seed(0)
    model = Pi3Model(tiny_pi3_config).train()
    grads = gradients(model, images(1, 2, 3, 28, 28))
    assert all(grad.isfinite().all() for grad in grads.values())
    assert grads["encoder.patch_embed.proj.weight"].abs().max() > 0
    assert sum(isinstance(module, Block) for module in model.modules()) == 2 + 4 + 3
