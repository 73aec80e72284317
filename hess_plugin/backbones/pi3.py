"""π³: the odd blocks of `decoder`; the original class and the native `Pi3Model` share this tree."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import PointSource
from ..geometry.cameras import invert_rigid
from .base import (
    Backbone,
    Reconstruction,
    TokenLayout,
    are_attention_blocks,
    conv_patch_size,
    full_precision,
    has_attributes,
    split_heads,
)


class Pi3Backbone(Backbone):
    """Register tokens, then the patches of each view; no reference view; poses are camera-to-world."""

    name = "pi3"
    image_argument = "imgs"
    camera_weight = 0.0

    def matches(self, model: nn.Module) -> bool:
        """A `decoder` list of attention blocks beside encoder, register tokens and three small decoders.

        A fourth one, `metric_decoder`, makes it Pi3X.
        """
        small = ("point_decoder", "conf_decoder", "camera_decoder")
        return has_pi3_trunk(model) and has_attributes(model, *small) and not is_metric(model)

    def image_module(self, model: Any) -> nn.Module:
        """The model itself."""
        return model

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`decoder.{i}.attn` for odd i; even blocks attend within a view."""
        return {f"decoder.{i}.attn": block.attn for i, block in enumerate(model.decoder) if i % 2}

    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """Register tokens, then patches."""
        special = module.register_token.shape[-2]
        return TokenLayout.from_images(self.images(args, kwargs), special, conv_patch_size(module.encoder))

    def patch_size(self, model: Any) -> tuple[int, int]:
        """From the image encoder."""
        return conv_patch_size(model.encoder)

    def project_qkv(
        self, attn: Any, x: Tensor, attn_bias: Tensor | None = None, xpos: Any = None, pos: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The original casts to v's dtype before it rotates, so that under autocast RoPE runs in bfloat16.

        Positions come as `xpos` (original) or `pos` (native class).
        """
        if attn_bias is not None:
            raise ValueError("attn_bias is given; sparse global attention knows no bias, call without it.")
        q, k, v = split_heads(attn, x)
        positions = pos if xpos is None else xpos
        return attn.rope(q.to(v.dtype), positions), attn.rope(k.to(v.dtype), positions), v

    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """π³ predicts points once, in each camera, so both values of `point_source` mean the same."""
        return Reconstruction(
            extrinsics=invert_rigid(full_precision(outputs["camera_poses"])[..., :3, :]),
            points=full_precision(outputs["points"]),
            confidence=full_precision(outputs["conf"])[..., 0].sigmoid(),  # stored as a logit
            depth=full_precision(outputs["local_points"])[..., 2],
        )


def has_pi3_trunk(model: Any) -> bool:
    """Whether the model has π³'s encoder, register tokens and `decoder` of attention blocks with RoPE."""
    return has_attributes(model, "encoder", "register_token") and are_attention_blocks(
        getattr(model, "decoder", None), "rope"
    )


def is_metric(model: Any) -> bool:
    """Whether the model predicts metric scale, by which Pi3X differs from π³."""
    return hasattr(model, "metric_decoder")
