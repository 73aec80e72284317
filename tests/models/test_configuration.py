from __future__ import annotations

import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError

from hess_plugin.models.configuration import Pi3Config, VggtConfig


def test_defaults_are_the_published_models():
    vggt = VggtConfig()
    assert (vggt.img_size, vggt.patch_size, vggt.embed_dim, vggt.depth, vggt.num_heads) == (
        518,
        14,
        1024,
        24,
        16,
    )
    assert (vggt.dpt_layers, vggt.dpt_out_channels) == ((4, 11, 17, 23), (256, 512, 1024, 1024))
    pi3 = Pi3Config()
    assert (pi3.decoder_embed_dim, pi3.decoder_depth, pi3.decoder_num_heads) == (1024, 36, 16)
    assert vggt.patch_embed == pi3.patch_embed == "dinov2_vitl14_reg"


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"img_size": 518, "patch_size": 14, "embed_dim": 1024, "enable_point": False, "enable_track": False},
    ],
    ids=["no keys", "the original's keys"],
)
def test_reads_a_config_without_model_type(tmp_path, stored):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = VggtConfig.from_pretrained(tmp_path)
    expected = {**VggtConfig().to_dict(), **stored}
    assert {key: config.to_dict()[key] for key in expected} == expected


def test_round_trip_gives_tuples_back(tmp_path):
    config = VggtConfig(depth=4, dpt_layers=(0, 1, 2, 3), dpt_out_channels=(8, 8, 16, 16))
    config.save_pretrained(tmp_path)
    loaded = VggtConfig.from_pretrained(tmp_path)
    assert loaded.dpt_layers == (0, 1, 2, 3)
    assert loaded.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        (VggtConfig, {"depth": 6}, r"dpt_layers must be in 0\.\.5 for depth=6, got \(4, 11, 17, 23\)"),
        (VggtConfig, {"dpt_layers": (1, 2, 3)}, "need four entries each"),
        (VggtConfig, {"dpt_features": 100}, "dpt_features must be a multiple of 8"),
        (VggtConfig, {"dpt_out_channels": (6, 8, 8, 8)}, "dpt_out_channels multiples of 4"),
        (VggtConfig, {"patch_embed": "resnet"}, "unknown patch_embed 'resnet'; known: .*, conv"),
        (VggtConfig, {"embed_dim": 768}, "width 1024, but the blocks have width 768"),
        (VggtConfig, {"num_heads": 10}, "num_heads=10 does not divide the width 1024"),
        (VggtConfig, {"camera_num_heads": 3}, "camera_num_heads=3 does not divide the width 2048"),
        (Pi3Config, {"patch_embed": "conv"}, "unknown patch_embed 'conv'"),
        (Pi3Config, {"decoder_depth": 5}, "decoder_depth must be even"),
        (Pi3Config, {"decoder_num_heads": 512}, "heads whose size is a multiple of 4"),
    ],
)
def test_contradictions_are_named(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**settings)


def test_types_are_checked():
    with pytest.raises(StrictDataclassFieldValidationError, match="'depth' expected int, got str"):
        VggtConfig(depth="24")
