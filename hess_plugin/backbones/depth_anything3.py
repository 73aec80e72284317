"""Depth Anything 3: the later odd blocks of its image encoder (`depth_anything_3.api.DepthAnything3`).

Tested on a double with the documented module tree, not on the original package.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..config import PointSource
from ..geometry.cameras import unproject_depth
from .base import (
    Backbone,
    Reconstruction,
    TokenLayout,
    are_attention_blocks,
    conv_patch_size,
    depth_maps,
    full_precision,
    normalize_images,
    split_heads,
)


class DepthAnything3Backbone(Backbone):
    """One special token, then the patches of each view; no points, poses are world-to-camera.

    The model to pass is the API object, also for calibration. Its own forward allows no gradients, so
    `predict` calls the network inside, in the precision of the weights and of the caller's autocast. Of the
    nested model that is the any-view network: what its metric companion adds is a scale, which the errors do
    not see. Calibrate a freshly loaded model, because inference leaves tensors in caches of the original
    that gradients may not use.

    From three views on the original moves a reference view to the front and back again; every view has the
    same layout, so nothing here depends on their order.
    """

    name = "depth_anything_3"
    image_argument = "x"

    def matches(self, model: nn.Module) -> bool:
        """`model.backbone.pretrained` (or `model.da3...`) with blocks of which some are global.

        The monocular and the metric model have the same tree without global attention (`alt_start` is -1).
        """
        vit = _vit(model)
        return (
            isinstance(getattr(vit, "alt_start", None), int)
            and are_attention_blocks(getattr(vit, "blocks", None), "rope")
            and bool(self.global_attentions(model))
        )

    def image_module(self, model: Any) -> nn.Module:
        """The network inside the API object; of a nested one, the any-view network."""
        return model.get_submodule(_network_name(model))

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`blocks.{i}.attn` of the encoder for odd i from `alt_start` on; all others attend within a view."""
        vit, prefix = _vit(model), f"{_network_name(model)}.backbone.pretrained"
        return {
            f"{prefix}.blocks.{i}.attn": block.attn
            for i, block in enumerate(vit.blocks)
            if i % 2 and 0 <= vit.alt_start <= i
        }

    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """The class token, which block `alt_start` overwrites by the camera token, and registers if any."""
        vit = module.backbone.pretrained
        registers = getattr(vit, "register_tokens", None)
        special = 1 if registers is None else 1 + registers.shape[-2]
        return TokenLayout.from_images(self.images(args, kwargs), special, conv_patch_size(vit))

    def patch_size(self, model: Any) -> tuple[int, int]:
        """From the image encoder."""
        return conv_patch_size(_vit(model))

    def project_qkv(
        self, attn: Any, x: Tensor, pos: Any = None, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """RoPE by the positions given, which in global attention are the same for all patches."""
        if attn_mask is not None:
            raise ValueError("attn_mask is given; sparse global attention knows no mask, call without it.")
        q, k, v = split_heads(attn, x)
        if attn.rope is not None and pos is not None:
            q, k = attn.rope(q, pos), attn.rope(k, pos)
        return q.to(v.dtype), k.to(v.dtype), v

    def predict(self, model: Any, images: Tensor) -> Any:
        """The network inside, on normalised images, as the original's input processor hands them over."""
        return self.image_module(model)(normalize_images(images))

    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """Points come from depth and camera, whatever `point_source` says.

        Raises:
            ValueError: outputs without cameras, from a model without its camera decoder.
        """
        lacking = [key for key in ("depth", "depth_conf", "extrinsics", "intrinsics") if key not in outputs]
        if lacking:
            raise ValueError(
                f"a reconstruction needs {', '.join(lacking)}, got outputs {', '.join(outputs)}; "
                "load a model with depth head and camera decoder."
            )
        depth, extrinsics = depth_maps(outputs["depth"]), full_precision(outputs["extrinsics"])[..., :3, :]
        points = unproject_depth(depth, extrinsics, full_precision(outputs["intrinsics"]))
        return Reconstruction(extrinsics, points, depth_maps(outputs["depth_conf"]), depth)


def _network_name(model: Any) -> str:
    return "model.da3" if hasattr(getattr(model, "model", None), "da3") else "model"


def _vit(model: Any) -> Any:
    """The encoder, or None."""
    try:
        return model.get_submodule(f"{_network_name(model)}.backbone.pretrained")
    except AttributeError:
        return None
