from __future__ import annotations

import json

import pytest
import torch
from golden_weights import golden_keys
from pi3_helpers import images
from safetensors.torch import load_file, save_file

from hess_plugin.hub import is_registered
from hess_plugin.models.configuration import Pi3Config
from hess_plugin.models.pi3 import Pi3Model


def test_from_pretrained_knows_hess():
    assert is_registered(Pi3Model)


def test_save_and_load(tiny_pi3, tmp_path):
    tiny_pi3.save_pretrained(tmp_path)
    again, info = Pi3Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    imgs = images(1, 2, 3, 28, 42)
    assert torch.equal(again(imgs).points, tiny_pi3(imgs).points)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "pi3"
    assert list(load_file(tmp_path / "model.safetensors")) == sorted(tiny_pi3.state_dict())


@pytest.mark.parametrize("original", [{}, {"pos_type": "rope100", "decoder_size": "large"}, None])
def test_reads_the_config_of_the_original_repository(original, tmp_path):
    """It names only what its class was built with, and no `model_type`."""
    if original is None:
        config = Pi3Config()
    else:
        (tmp_path / "config.json").write_text(json.dumps(original))
        config = Pi3Config.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = Pi3Model(config)
    assert {name: list(t.shape) for name, t in model.state_dict().items()} == golden_keys("pi3")


def test_loads_an_original_repository(tiny_pi3, tmp_path):
    """Weights beside a config.json without `model_type`; here the sizes come as keywords."""
    save_file(tiny_pi3.state_dict(), tmp_path / "model.safetensors")
    sizes = {key: getattr(tiny_pi3.config, key) for key in Pi3Config.__annotations__ if key != "model_type"}
    (tmp_path / "config.json").write_text(json.dumps({"pos_type": "rope100", "decoder_size": "large"}))
    again, info = Pi3Model.from_pretrained(tmp_path, output_loading_info=True, **sizes)
    assert not any(info.values()), info
    imgs = images(1, 2, 3, 28, 42)
    assert torch.equal(again(imgs).points, tiny_pi3(imgs).points)


def test_missing_constants_are_filled(tiny_pi3, tmp_path):
    weights = {k: v for k, v in tiny_pi3.state_dict().items() if k not in ("image_mean", "image_std")}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    tiny_pi3.config.save_pretrained(tmp_path)
    again = Pi3Model.from_pretrained(tmp_path)
    assert torch.equal(again.image_mean, tiny_pi3.image_mean)
    assert torch.equal(again.image_std, tiny_pi3.image_std)
    assert again.image_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_loads_in_bfloat16_with_float32_outputs(tiny_pi3, tmp_path):
    tiny_pi3.save_pretrained(tmp_path)
    model = Pi3Model.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.decoder[0].attn.qkv.weight.dtype == torch.bfloat16
    assert model.point_head.proj.weight.dtype == torch.float32
    assert model(images(1, 2, 3, 28, 28)).points.dtype == torch.float32
