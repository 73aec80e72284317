"""MapAnything: the even blocks of `info_sharing.self_attention_blocks` (`mapanything.models.MapAnything`).

Tested on a double with the documented module tree, not on the original package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..config import PointSource
from ..geometry.cameras import invert_rigid, quaternion_to_rotation
from .base import (
    Backbone,
    Reconstruction,
    TokenLayout,
    are_attention_blocks,
    conv_patch_size,
    depth_of_points,
    full_precision,
    has_attributes,
    normalize_images,
    split_heads,
)

_IMAGENET = ("dinov2", "dinov3")  # encoders that take images normalised with the statistics of ImageNet


class MapAnythingBackbone(Backbone):
    """The patches of each view, then its special token if any; one scale token ends the whole sequence.

    All this is read from what `info_sharing` is given: the feature maps of the views have a pixel for each
    patch. Its first release has no special token in a view.

    Calibration gives the model images alone: no known rays, depths or poses.
    """

    name = "map_anything"
    image_argument = "model_input"

    def matches(self, model: nn.Module) -> bool:
        """An `encoder`, and an `info_sharing` with a list of self-attention blocks."""
        blocks = getattr(getattr(model, "info_sharing", None), "self_attention_blocks", None)
        return has_attributes(model, "encoder") and are_attention_blocks(blocks)

    def image_module(self, model: Any) -> nn.Module:
        """`info_sharing`, which gets the features of the views, however the images came in."""
        return model.info_sharing

    def images(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Feature maps of the views [B, V, C, rows, columns], in the place of images."""
        return torch.stack(super().images(args, kwargs).features, dim=1)

    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """`info_sharing.self_attention_blocks.{i}.attn` for even i; odd blocks attend within a view."""
        blocks = model.info_sharing.self_attention_blocks
        return {
            f"info_sharing.self_attention_blocks.{i}.attn": block.attn
            for i, block in enumerate(blocks)
            if i % 2 == 0
        }

    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """Patches, the additional tokens of each view, and after all views those of the sequence."""
        features = super().images(args, kwargs)
        per_view = getattr(features, "additional_input_tokens_per_view", None)  # not in older uniception
        trailing = features.additional_input_tokens
        return TokenLayout(
            num_views=len(features.features),
            num_special_tokens=0 if per_view is None else per_view[0].shape[-1],  # [B, C, tokens]
            grid=tuple(features.features[0].shape[-2:]),
            special_last=True,
            num_trailing_tokens=0 if trailing is None else trailing.shape[-1],
        )

    def patch_size(self, model: Any) -> tuple[int, int]:
        """From the image encoder."""
        return conv_patch_size(model.encoder)

    def project_qkv(self, attn: Any, x: Tensor, xpos: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """q also carries the factors by which some models sharpen attention over long sequences.

        They follow the number of all N tokens: attending to fewer changes nothing about them.
        """
        q, k, v = split_heads(attn, x)
        rotate = getattr(attn, "custom_positional_encoding", None)
        if rotate is not None:
            q, k = rotate(q, xpos), rotate(k, xpos)
        log_count = torch.log(torch.tensor(float(x.shape[1])))
        if getattr(attn, "use_scalable_softmax", False):
            q = q * log_count
        if getattr(attn, "use_entropy_scaling", False):
            base = torch.log(torch.tensor(float(attn.base_token_count_for_entropy_scaling)))
            q = q * torch.sqrt(attn.entropy_scaling_growth_factor * log_count / base)
        return q.to(v.dtype), k.to(v.dtype), v

    def predict(self, model: Any, images: Tensor) -> Any:
        """A dict for each view, with normalised images, as the original takes them.

        Raises:
            ValueError: an encoder whose normalisation is not known here.
        """
        norm = getattr(model.encoder, "data_norm_type", _IMAGENET[0])
        if norm not in _IMAGENET:
            raise ValueError(
                f"the encoder takes images normalised for {norm!r}, known are {', '.join(_IMAGENET)}; "
                "calibrate a MapAnything model with one of these encoders."
            )
        views = normalize_images(images).unbind(1)
        return model([{"img": view, "data_norm_type": [norm]} for view in views])

    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """From a dict for each view; points are predicted once, so `point_source` makes no difference.

        Poses are camera-to-world, quaternions have their scalar last.

        Raises:
            ValueError: outputs without points, confidence or pose.
        """
        needed = ("pts3d", "conf", "cam_trans", "cam_quats")
        lacking = sorted({key for key in needed for view in outputs if key not in view})
        if lacking:
            raise ValueError(
                f"a reconstruction needs {', '.join(needed)} of every view, the outputs lack "
                f"{', '.join(lacking)}; load a model that predicts them."
            )
        points, confidence, centers, quaternions = (
            full_precision(torch.stack([view[key] for view in outputs], dim=1)) for key in needed
        )
        rotations = quaternion_to_rotation(quaternions)
        extrinsics = invert_rigid(torch.cat([rotations, centers[..., None]], dim=-1))
        return Reconstruction(extrinsics, points, confidence, depth_of_points(points, extrinsics))
