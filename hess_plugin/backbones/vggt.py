"""VGGT: `aggregator.global_blocks[i].attn`; the original class and the native `VggtModel` share this tree."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ..config import PointSource
from ..geometry.cameras import decode_pose, unproject_depth
from .base import (
    Backbone,
    Pieces,
    Reconstruction,
    TokenLayout,
    are_attention_blocks,
    conv_patch_size,
    depth_maps,
    depth_of_points,
    full_precision,
    has_attributes,
    split_heads,
)


class VggtBackbone(Backbone):
    """One camera token and the register tokens, then the patches of each view; poses are world-to-camera."""

    name = "vggt"
    image_argument = "images"

    def matches(self, model: nn.Module) -> bool:
        """An `aggregator` with special tokens, frame blocks and global blocks of attention without a mask.

        StreamVGGT has the same tree, but gives its global attention a causal mask: another family.
        """
        return masked_global_blocks(model) == {False}

    def image_module(self, model: Any) -> nn.Module:
        """The aggregator, because users also call it on its own, before the heads."""
        return model.aggregator

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`aggregator.global_blocks.{i}.attn` for every i."""
        blocks = model.aggregator.global_blocks
        return {f"aggregator.global_blocks.{i}.attn": block.attn for i, block in enumerate(blocks)}

    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """Camera and register tokens, then patches."""
        special = module.camera_token.shape[-2] + module.register_token.shape[-2]
        return TokenLayout.from_images(
            self.images(args, kwargs), special, conv_patch_size(module.patch_embed)
        )

    def patch_size(self, model: Any) -> tuple[int, int]:
        """From the image encoder."""
        return conv_patch_size(model.aggregator.patch_embed)

    def pieces(self, model: Any) -> Pieces | None:
        """Of the original class; the native one keeps only what is read, as a dict."""
        aggregator = model.aggregator
        if type(self) is not VggtBackbone or hasattr(aggregator, "output_layers"):
            return None  # relatives put their outputs together in other ways
        within = (*getattr(aggregator.patch_embed, "blocks", ()), *aggregator.frame_blocks)
        depth = len(aggregator.global_blocks)
        heads = (getattr(module, "intermediate_layer_idx", None) for module in model.modules())
        read = {-1, *(layer for used in heads for layer in used or ())}  # the camera head reads the last
        mlps = tuple(block.mlp for block in (*within, *aggregator.global_blocks))
        layers = frozenset(layer % depth for layer in read)
        return Pieces(within, mlps, aggregator.camera_token.shape[-1], depth, layers)

    def project_qkv(self, attn: Any, x: Tensor, pos: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """The original rotates what the norms return (float32 under autocast) and rounds at the product."""
        q, k, v = split_heads(attn, x)
        return attn.rope(q, pos).to(v.dtype), attn.rope(k, pos).to(v.dtype), v

    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """Points and confidence come from the point head unless it is absent or `point_source` is "depth"."""
        present = {key for key in ("pose_enc", "world_points", "depth") if outputs.get(key) is not None}
        if "pose_enc" not in present or len(present) < 2:
            raise ValueError(
                "a reconstruction needs pose_enc and one of world_points and depth, got outputs "
                f"{', '.join(outputs)}; load the model with its camera head and a point or depth head."
            )
        if point_source == "depth" and "depth" not in present:
            raise ValueError('point_source is "depth" but the outputs have no depth; use "point_head".')
        height, width = outputs["depth" if "depth" in present else "world_points"].shape[2:4]
        extrinsics, intrinsics = decode_pose(full_precision(outputs["pose_enc"]), (height, width))
        if point_source == "point_head" and "world_points" in present:
            points = full_precision(outputs["world_points"])
            confidence = full_precision(outputs["world_points_conf"])
        else:
            points = unproject_depth(depth_maps(outputs["depth"]), extrinsics, intrinsics)
            confidence = full_precision(outputs["depth_conf"])
        has_depth = "depth" in present
        depth = depth_maps(outputs["depth"]) if has_depth else depth_of_points(points, extrinsics)
        return Reconstruction(extrinsics, points, confidence, depth)


def masked_global_blocks(model: Any) -> set[bool]:
    """Whether the attentions of an aggregator's global blocks take a mask; empty without such blocks."""
    aggregator: Any = getattr(model, "aggregator", None)
    tree = ("patch_embed", "camera_token", "register_token", "frame_blocks", "global_blocks")
    if not has_attributes(aggregator, *tree) or not are_attention_blocks(aggregator.global_blocks, "rope"):
        return set()
    forwards = (inspect.signature(block.attn.forward) for block in aggregator.global_blocks)
    return {"attn_mask" in forward.parameters for forward in forwards}
