"""Native VGGT: photos of a scene to cameras, depth maps, points and tracks in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..geometry.cameras import decode_pose
from ..hub import register
from .camera_head import CameraHead
from .configuration import VggtConfig
from .dpt_head import DptHead, inverse_log
from .encoder import IMAGE_MEAN, IMAGE_STD, build_encoder
from .layers import Block, at_least_float32, in_chunks, init_parameters, results_on, rope_angles
from .track_head import MIN_IMAGE_SIDE, TrackHead

NUM_REGISTERS = 4
NUM_SPECIAL_TOKENS = 1 + NUM_REGISTERS  # per view, first the camera token
VIEWS_AT_ONCE = 32  # in the image encoder and the frame blocks, where no gradient is recorded


@dataclass
class VggtOutput(ModelOutput):
    """What `VggtModel` predicts; the entries of an absent head are None. World = frame of the first camera.

    Convention: OpenCV cameras, world to camera; quaternions x, y, z, w, not normalised; fields of view in
    radians, vertical first; pixels (x, y) of the images as given. Confidences of maps are above 1.
    """

    pose_enc: Tensor | None = None  # [B, V, 9]: translation, quaternion, fields of view
    pose_enc_list: list[Tensor] | None = None  # the same after each refinement
    depth: Tensor | None = None  # [B, V, height, width, 1]
    depth_conf: Tensor | None = None  # [B, V, height, width]
    world_points: Tensor | None = None  # [B, V, height, width, 3]
    world_points_conf: Tensor | None = None  # [B, V, height, width]
    images: Tensor | None = None  # [B, V, 3, height, width], the input; not while training
    track: Tensor | None = None  # [B, V, N, 2], of the query points
    vis: Tensor | None = None  # [B, V, N] in [0, 1]
    conf: Tensor | None = None  # [B, V, N] in [0, 1]
    extrinsics: Tensor | None = None  # [B, V, 3, 4], decoded from pose_enc
    intrinsics: Tensor | None = None  # [B, V, 3, 3], likewise


class Aggregator(nn.Module):
    """Image encoder, then frame attention and global attention in turn."""

    _resnet_mean: Tensor
    _resnet_std: Tensor

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_size = config.patch_size
        self.head_dim = dim // config.num_heads
        self.output_layers = {*config.dpt_layers, config.depth - 1}  # all that a head reads
        # Index 0 is for the first view, whose camera is the world's frame; index 1 for all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, NUM_REGISTERS, dim))
        self.patch_embed = build_encoder(
            config.patch_embed,
            img_size=config.img_size,
            patch_size=config.patch_size,
            embed_dim=dim,
            mask_token=True,
        )
        self.frame_blocks = _blocks(config)
        self.global_blocks = _blocks(config)
        self.register_buffer("_resnet_mean", _per_channel(IMAGE_MEAN), persistent=False)
        self.register_buffer("_resnet_std", _per_channel(IMAGE_STD), persistent=False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Images [B, V, 3, height, width] to the tokens [B, V, P, 2C] of each layer that a head reads.

        A token is the frame attention's result beside the global attention's; the special tokens come first.
        """
        batch, views, _, height, width = images.shape
        grid = (height // self.patch_size, width // self.patch_size)
        # What works within views need not hold all of them at a time, unless for the gradients.
        at_once = batch * views if torch.is_grad_enabled() else VIEWS_AT_ONCE
        patches = in_chunks(self._encode, images.flatten(0, 1), at_once)
        first, other = torch.cat((self.camera_token, self.register_token), dim=2).split(1, dim=1)
        special = torch.cat((first, other.expand(-1, views - 1, -1, -1)), dim=1).expand(batch, -1, -1, -1)
        tokens = torch.cat((special, patches.unflatten(0, (batch, views))), dim=2)  # [B, V, P, C]
        del patches
        pos = rope_angles(grid, self.head_dim, NUM_SPECIAL_TOKENS, images.device)
        outputs = {}
        pairs = zip(self.frame_blocks, self.global_blocks, strict=True)
        for layer, (frame_block, global_block) in enumerate(pairs):
            within = in_chunks(frame_block, tokens.flatten(0, 1), at_once, pos).unflatten(0, (batch, views))
            tokens = global_block(within.flatten(1, 2), pos).unflatten(1, (views, -1))
            if layer in self.output_layers:
                outputs[layer] = torch.cat((within, tokens), dim=-1)
        return outputs

    def _encode(self, images: Tensor) -> Tensor:
        """Images [N, 3, height, width] to patch tokens [N, rows·cols, C]."""
        return self.patch_embed((at_least_float32(images) - self._resnet_mean) / self._resnet_std)


@register
class VggtModel(PreTrainedModel):
    """VGGT as a transformers model; reads the original's repositories (`facebook/VGGT-1B`) as they are.

    Attributes:
        frames_chunk_size: views that the dense heads work on at a time; changes memory, not results.
    """

    config_class = VggtConfig
    base_model_prefix = "vggt"
    main_input_name = "images"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (the form that transformers asks for)
    # The dense heads end in exponentials, which half precision would blur.
    _keep_in_fp32_modules_strict = ["camera_head", "point_head", "depth_head", "track_head"]  # noqa: RUF012

    frames_chunk_size = 8

    def __init__(self, config: VggtConfig) -> None:
        super().__init__(config)
        dim = 2 * config.embed_dim
        dense = (dim, config.dpt_features, config.dpt_out_channels)
        self.aggregator = Aggregator(config)
        self.camera_head = self.point_head = self.depth_head = self.track_head = None
        if config.enable_camera:
            self.camera_head = CameraHead(
                dim, config.camera_trunk_depth, config.camera_num_heads, config.layer_scale_init
            )
        if config.enable_point:
            self.point_head = DptHead(*dense, output_dim=3, activation=inverse_log)
        if config.enable_depth:
            self.depth_head = DptHead(*dense, output_dim=1, activation=torch.exp)
        if config.enable_track:
            self.track_head = TrackHead(dim, config.dpt_out_channels, config.track_position_maps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_parameters(module)
        if isinstance(module, Aggregator):
            # Not in the checkpoints: after loading, these buffers hold whatever was in memory.
            init.copy_(module._resnet_mean, _per_channel(IMAGE_MEAN))
            init.copy_(module._resnet_std, _per_channel(IMAGE_STD))

    def forward(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        output_device: torch.device | str | None = None,
    ) -> VggtOutput:
        """Reconstruct one scene [V, 3, height, width] or several [B, V, 3, height, width].

        Args:
            images: RGB in [0, 1]; height and width are multiples of the patch size.
            query_points: [N, 2] or [B, N, 2], (x, y) in pixels of the first view, to be tracked in all views.
            output_device: where outputs are to be, but for the images; each chunk of maps goes there when it
                is finished. "cpu" saves a GPU 24 bytes per pixel. None: where the model is.

        Raises:
            ValueError: if shapes or dtypes do not fit, or points are given to a model without track head.
        """
        images, query_points = self._check_inputs(images, query_points)
        layers = self.aggregator(images)
        size = (images.shape[-2], images.shape[-1])
        grid = (size[0] // self.config.patch_size, size[1] // self.config.patch_size)
        patches = [layers[layer][:, :, NUM_SPECIAL_TOKENS:].flatten(0, 1) for layer in self.config.dpt_layers]
        values: dict[str, Any] = {} if self.training else {"images": images}
        with torch.autocast(images.device.type, enabled=False):  # these heads are float32, as the original's
            if self.camera_head is not None:
                camera_head = results_on(output_device, self.camera_head)
                poses = list(camera_head(layers[self.config.depth - 1][:, :, 0]))
                values |= {"pose_enc": poses[-1], "pose_enc_list": poses}
                values["extrinsics"], values["intrinsics"] = decode_pose(poses[-1], size)
            for head, name in ((self.depth_head, "depth"), (self.point_head, "world_points")):
                if head is not None:
                    dense = results_on(output_device, head)
                    maps = in_chunks(dense, patches, self.frames_chunk_size, grid, size)
                    values[name], values[f"{name}_conf"] = (x.unflatten(0, images.shape[:2]) for x in maps)
        if self.track_head is not None and query_points is not None:
            track_head = results_on(output_device, self.track_head)
            values["track"], values["vis"], values["conf"] = track_head(
                patches,
                grid,
                size,
                query_points,
                iterations=self.config.track_iterations,
                chunk_size=self.frames_chunk_size,
            )
        return VggtOutput(**values)

    def _check_inputs(self, images: Tensor, query_points: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both with a batch axis; raises ValueError where they do not fit."""
        patch = self.config.patch_size
        if images.ndim not in (4, 5) or images.shape[-3] != 3 or 0 in images.shape:
            raise ValueError(
                f"images must be [V, 3, height, width] or [B, V, 3, height, width], got {list(images.shape)}."
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}; divide by 255.")
        if images.shape[-2] % patch or images.shape[-1] % patch:
            raise ValueError(
                f"height and width of images must be multiples of the patch size {patch}, "
                f"got {images.shape[-2]} x {images.shape[-1]}; crop or resize them."
            )
        images = images if images.ndim == 5 else images[None]
        if query_points is None:
            return images, None
        if self.track_head is None:
            raise ValueError("query_points given to a model without track head (enable_track=False).")
        if min(images.shape[-2:]) < MIN_IMAGE_SIDE:
            raise ValueError(
                f"tracking needs images of at least {MIN_IMAGE_SIDE} pixels a side, "
                f"got {images.shape[-2]} x {images.shape[-1]}."
            )
        query_points = query_points if query_points.ndim == 3 else query_points[None]
        if query_points.ndim != 3 or query_points.shape[-1] != 2 or len(query_points) != len(images):
            raise ValueError(
                f"query_points must be [N, 2] for one scene or [B, N, 2] with B = {len(images)} as images "
                f"have, got {list(query_points.shape)}."
            )
        return images, query_points


def _blocks(config: VggtConfig) -> nn.ModuleList:
    scale = config.layer_scale_init
    return nn.ModuleList(
        Block(
            config.embed_dim, config.num_heads, norm_eps=1e-5, layer_scale_init=scale, qk_norm=True, rope=True
        )
        for _ in range(config.depth)
    )


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
