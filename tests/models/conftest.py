from __future__ import annotations

import pytest
import torch
from golden_weights import build_filled
from pi3_helpers import fill_golden_weights
from torch import Tensor
from vggt_helpers import tiny_config

from hess_plugin.models import configuration, pi3, pi3_heads
from hess_plugin.models.configuration import Pi3Config
from hess_plugin.models.pi3 import Pi3Model
from hess_plugin.models.vggt import VggtModel


@pytest.fixture
def tiny_pi3_config(monkeypatch) -> Pi3Config:
    """Real classes with few and narrow layers; the published encoders and decoders have fixed sizes."""
    monkeypatch.setitem(configuration.ENCODERS, "tiny", (32, 2, 2))
    monkeypatch.setattr(pi3_heads, "DECODER_DIM", 48)
    monkeypatch.setattr(pi3, "DECODER_DIM", 48)
    monkeypatch.setattr(pi3_heads, "DECODER_NUM_HEADS", 2)
    monkeypatch.setattr(pi3_heads, "DECODER_DEPTH", 1)
    return Pi3Config(
        decoder_embed_dim=32,
        decoder_depth=4,
        decoder_num_heads=2,
        patch_embed="tiny",
        img_size=70,
        layer_scale_init=1.0,
    )


@pytest.fixture
def tiny_pi3(tiny_pi3_config) -> Pi3Model:
    model = Pi3Model(tiny_pi3_config).eval()
    fill_golden_weights(model)
    return model


@pytest.fixture(scope="session")
def tiny_vggt() -> VggtModel:
    return build_filled(VggtModel, tiny_config())


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def vggt_images() -> Tensor:
    return torch.rand(2, 3, 3, 24, 40, generator=torch.Generator().manual_seed(0))
