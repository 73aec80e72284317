"""VGGT: `aggregator.global_blocks[i].attn`; the original class and the native `VggtModel` share this tree."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PointSource
from ..geometry.cameras import decode_pose, unproject_depth
from .base import (
    Backbone,
    Reconstruction,
    are_attention_blocks,
    conv_patch_size,
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

        StreamVGGT has the same tree, but gives its global attention a causal mask: not this family.
        """
        aggregator: Any = getattr(model, "aggregator", None)
        tokens = ("patch_embed", "camera_token", "register_token")
        return (
            has_attributes(aggregator, *tokens, "frame_blocks", "global_blocks")
            and are_attention_blocks(aggregator.global_blocks)
            and not any(_takes_mask(block.attn) for block in aggregator.global_blocks)
        )

    def image_module(self, model: Any) -> nn.Module:
        """The aggregator, because users also call it on its own, before the heads."""
        return model.aggregator

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`aggregator.global_blocks.{i}.attn` for every i."""
        blocks = model.aggregator.global_blocks
        return {f"aggregator.global_blocks.{i}.attn": block.attn for i, block in enumerate(blocks)}

    def num_special_tokens(self, model: Any) -> int:
        """Camera and register tokens of one view."""
        return model.aggregator.camera_token.shape[2] + model.aggregator.register_token.shape[2]

    def patch_size(self, model: Any) -> tuple[int, int]:
        """From the image encoder."""
        return conv_patch_size(model.aggregator.patch_embed)

    def project_qkv(self, attn: Any, x: Tensor, pos: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """The original rotates what the norms return (float32 under autocast) and rounds at the product."""
        q, k, v = split_heads(attn, x)
        return attn.rope(q, pos).to(v.dtype), attn.rope(k, pos).to(v.dtype), v

    def reconstruct(
        self, outputs: Mapping[str, Any], point_source: PointSource = "point_head"
    ) -> Reconstruction:
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
            points = unproject_depth(full_precision(outputs["depth"])[..., 0], extrinsics, intrinsics)
            confidence = full_precision(outputs["depth_conf"])
        depth = full_precision(outputs["depth"])[..., 0] if "depth" in present else _z(points, extrinsics)
        return Reconstruction(extrinsics, points, confidence, depth)


def _takes_mask(attn: nn.Module) -> bool:
    return "attn_mask" in inspect.signature(attn.forward).parameters


def _z(points: Tensor, extrinsics: Tensor) -> Tensor:
    """Depth [B, V, height, width] of world points in their cameras: the third row of R x + t."""
    row = extrinsics[:, :, 2]
    return torch.einsum("bvc,bvhwc->bvhw", row[..., :3], points) + row[..., 3, None, None]
