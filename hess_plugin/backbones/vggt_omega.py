"""VGGT-Ω: `aggregator.inter_frame_blocks[i].attn` (`vggt_omega.models.VGGTOmega`).

The original is a plain `nn.Module` whose weights come as a `.pt` file: it has no `from_pretrained` that could
learn `hess=`. Load it as its authors say, then call `apply_hess(model, scores, config)`.

Tested on a double with the documented module tree, not on the original package.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import TokenLayout, are_attention_blocks, has_attributes, split_heads
from .vggt import VggtBackbone

# These attend over the special tokens of all views alone. The published model has 24 blocks.
_SPECIAL_TOKEN_BLOCKS = (2, 6, 9, 14, 20)


class VggtOmegaBackbone(VggtBackbone):
    """One camera token and sixteen registers, then the patches of each view; patches of 16 pixels.

    Outputs are read as VGGT's. There is no point head: points come from depth and camera, whatever
    `point_source` says. The field of view in `pose_enc` is at least 0.01, so no focal length is infinite.

    On CUDA the forward opens an autocast of its own, so there the gradients of a calibration pass through
    bfloat16 products whatever the weights are.
    """

    name = "vggt_omega"
    image_argument = "images"

    def matches(self, model: nn.Module) -> bool:
        """An `aggregator` with special tokens and `inter_frame_blocks` of attention."""
        aggregator: Any = getattr(model, "aggregator", None)
        tree = ("patch_embed", "camera_token", "register_token", "inter_frame_blocks")
        return has_attributes(aggregator, *tree) and are_attention_blocks(aggregator.inter_frame_blocks)

    def image_module(self, model: Any) -> nn.Module:
        """The model itself."""
        return model

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`aggregator.inter_frame_blocks.{i}.attn` but for i = 2, 6, 9, 14 and 20.

        Those five attend over special tokens only: they have no patches to skip, and stay as they are.
        """
        return {
            f"aggregator.inter_frame_blocks.{i}.attn": block.attn
            for i, block in enumerate(model.aggregator.inter_frame_blocks)
            if i not in _SPECIAL_TOKEN_BLOCKS
        }

    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """As VGGT, from the aggregator inside."""
        return super().token_layout(module.aggregator, (self.images(args, kwargs),), {})

    def project_qkv(
        self, attn: Any, x: Tensor, attn_bias: Tensor | None = None, rope: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Without RoPE. `qkv` is called as a module, which masks the bias of the keys."""
        if attn_bias is not None or rope is not None:
            raise ValueError(
                "attn_bias or rope is given; the global attention of VGGT-Ω runs without both, and sparse "
                "attention knows neither: call it without them."
            )
        q, k, v = split_heads(attn, x)
        return q.to(v.dtype), k.to(v.dtype), v
