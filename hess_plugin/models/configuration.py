"""Settings of the native models; the defaults are those of the published checkpoints."""

# No `from __future__ import annotations` here: `strict` checks the types of the fields, not their spelling.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Name of a pretrained image encoder: its width, number of blocks and number of heads.
ENCODERS = {"dinov2_vitl14_reg": (1024, 24, 16), "dinov2_vits14_reg": (384, 12, 6)}


@strict
class VggtConfig(PreTrainedConfig):
    """Settings of `VggtModel`; without arguments those of `facebook/VGGT-1B`.

    The names shared with the original's own `config.json` (`img_size`, `patch_size`, `embed_dim`, `enable_*`)
    have the same meaning, so that file is read as it is. Raises ValueError where two settings contradict.

    Example:
        >>> VggtConfig(depth=6, dpt_layers=(0, 2, 4, 5)).depth
        6
    """

    model_type = "vggt"

    img_size: int = 518  # pixels; side of the square images whose grid the learned position embedding has
    patch_size: int = 14  # pixels
    embed_dim: int = 1024  # width C of the tokens; the heads read 2C
    depth: int = 24  # number of frame blocks, and of global blocks
    num_heads: int = 16
    patch_embed: str = "dinov2_vitl14_reg"  # image encoder: a key of ENCODERS, or "conv" for one convolution
    camera_trunk_depth: int = 4
    camera_num_heads: int = 16
    dpt_features: int = 256
    dpt_out_channels: tuple[int, ...] | list[int] = (256, 512, 1024, 1024)  # per stage, fine to coarse
    dpt_layers: tuple[int, ...] | list[int] = (4, 11, 17, 23)  # aggregator layers that the dense heads read
    enable_camera: bool = True
    enable_point: bool = True
    enable_depth: bool = True
    enable_track: bool = True
    track_position_maps: bool = False  # True only for `facebook/VGGT_tracker_fixed`
    track_iterations: int = 4
    layer_scale_init: float = 0.01  # initial factor of each residual branch, for training from scratch

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.dpt_out_channels, self.dpt_layers = tuple(self.dpt_out_channels), tuple(self.dpt_layers)
        _check_encoder(self.patch_embed, self.embed_dim, (*ENCODERS, "conv"))
        _check_heads("num_heads", self.num_heads, self.embed_dim, multiple=4)
        _check_heads("camera_num_heads", self.camera_num_heads, 2 * self.embed_dim)
        if len(self.dpt_out_channels) != 4 or len(self.dpt_layers) != 4:
            raise ValueError(
                "dpt_out_channels and dpt_layers need four entries each, one per stage of the dense heads, "
                f"got {self.dpt_out_channels} and {self.dpt_layers}."
            )
        if not all(0 <= layer < self.depth for layer in self.dpt_layers):
            raise ValueError(
                f"dpt_layers must be in 0..{self.depth - 1} for depth={self.depth}, got {self.dpt_layers}; "
                "name four layers of this depth."
            )
        if self.dpt_features % 8 or any(channels % 4 for channels in self.dpt_out_channels):
            raise ValueError(
                "dpt_features must be a multiple of 8 and dpt_out_channels multiples of 4 (position maps), "
                f"got {self.dpt_features} and {self.dpt_out_channels}."
            )


@strict
class Pi3Config(PreTrainedConfig):
    """Settings of `Pi3Model`; without arguments those of `yyfz233/Pi3`.

    Example:
        >>> Pi3Config().decoder_embed_dim
        1024
    """

    model_type = "pi3"

    img_size: int = 518  # pixels; side of the square images whose grid the learned position embedding has
    patch_size: int = 14  # pixels
    patch_embed: str = "dinov2_vitl14_reg"  # image encoder, a key of ENCODERS; its width is decoder_embed_dim
    decoder_embed_dim: int = 1024  # width C of the tokens
    decoder_depth: int = 36  # blocks: even ones within a view, odd ones over all views
    decoder_num_heads: int = 16
    layer_scale_init: float = 0.01  # initial factor of each residual branch, for training from scratch

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_encoder(self.patch_embed, self.decoder_embed_dim, tuple(ENCODERS))
        _check_heads("decoder_num_heads", self.decoder_num_heads, self.decoder_embed_dim, multiple=4)
        if self.decoder_depth < 2 or self.decoder_depth % 2:
            raise ValueError(
                f"decoder_depth must be even (pairs of frame and global blocks), got {self.decoder_depth}."
            )


def _check_encoder(name: str, width: int, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown patch_embed {name!r}; known: {', '.join(known)}.")
    if name in ENCODERS and ENCODERS[name][0] != width:
        raise ValueError(
            f"patch_embed {name!r} gives tokens of width {ENCODERS[name][0]}, but the blocks have width "
            f"{width}; the two must be equal."
        )


def _check_heads(field: str, num_heads: int, width: int, multiple: int = 1) -> None:
    if num_heads < 1 or width % (num_heads * multiple):
        rule = f" into heads whose size is a multiple of {multiple} (RoPE)" if multiple > 1 else ""
        raise ValueError(f"{field}={num_heads} does not divide the width {width}{rule}.")
