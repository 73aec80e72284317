from __future__ import annotations

import pytest
import torch
from torch import nn

from hess_plugin.models import configuration
from hess_plugin.models.encoder import Dinov2Encoder, PatchEmbed, build_encoder


@pytest.fixture
def encoder(monkeypatch) -> Dinov2Encoder:
    """The real class with two narrow blocks; its position embedding has 4 x 4 places."""
    monkeypatch.setitem(configuration.ENCODERS, "tiny", (32, 2, 2))
    encoder = build_encoder("tiny", img_size=32, patch_size=8, embed_dim=32, mask_token=True)
    assert isinstance(encoder, Dinov2Encoder)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (24, 40), (40, 24)])
def test_shapes(encoder, size):
    tokens = encoder(torch.rand(3, 3, *size))
    assert tokens.shape == (3, size[0] * size[1] // 64, 32)
    assert tokens.isfinite().all()


def test_mask_token_is_optional_and_frozen(encoder):
    assert not encoder.mask_token.requires_grad
    without = build_encoder("tiny", img_size=32, patch_size=8, embed_dim=32, mask_token=False)
    assert set(encoder.state_dict()) - set(without.state_dict()) == {"mask_token"}


def test_position_embedding_is_resized_only_for_other_grids(encoder):
    """A 2 x 8 grid has as many places as the learned 4 x 4, but they lie elsewhere."""
    assert encoder._position_embedding((4, 4)) is encoder.pos_embed
    other = encoder._position_embedding((2, 8))
    assert torch.equal(other[:, 0], encoder.pos_embed[:, 0])
    assert not torch.allclose(other[:, 1:], encoder.pos_embed[:, 1:], atol=1e-2)


def test_position_embedding_keeps_a_gradient_along_columns(encoder):
    """A ramp over the columns stays one over the columns, ascending, and constant over the rows."""
    with torch.no_grad():
        encoder.pos_embed[:, 1:] = torch.arange(4.0).repeat(4)[None, :, None]
    resized = encoder._position_embedding((3, 7))[0, 1:, 0].view(3, 7)
    assert (resized.diff(dim=1) > 0).all()
    torch.testing.assert_close(resized, resized[:1].expand(3, -1))


def test_images_do_not_mix(encoder):
    images = torch.rand(3, 3, 16, 24)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), alone)


def test_conv_is_one_convolution():
    patch_embed = build_encoder("conv", img_size=112, patch_size=8, embed_dim=16, mask_token=True)
    assert isinstance(patch_embed, PatchEmbed)
    assert list(patch_embed.state_dict()) == ["proj.weight", "proj.bias"]
    images = torch.rand(2, 3, 16, 24)
    tokens = patch_embed(images)
    assert tokens.shape == (2, 6, 16)
    patch = images[1, :, 8:16, 16:24].flatten()  # row 1, column 2 of 3 columns: patch 5
    torch.testing.assert_close(
        tokens[1, 5], patch_embed.proj.weight.flatten(1) @ patch + patch_embed.proj.bias
    )
