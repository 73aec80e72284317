"""π³ as a transformers model; module names and state-dict keys are those of the published checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..geometry.cameras import invert_rigid
from ..hub import register
from .configuration import Pi3Config
from .encoder import IMAGE_MEAN, IMAGE_STD, build_encoder
from .layers import Block, at_least_float32, in_chunks, init_parameters, results_on, rope_angles
from .pi3_heads import (
    CAMERA_DIM,
    DECODER_DIM,
    FrameDecoder,
    PatchesToPixels,
    Pi3CameraHead,
    SameDtypeHeadNorm,
)

NUM_SPECIAL_TOKENS = 5  # register tokens of the backbone, the same for every view


@dataclass
class Pi3Output(ModelOutput):
    """What π³ predicts for B sets of V views; float32.

    Convention: OpenCV cameras; the world is an arbitrary frame in an arbitrary unit (no view is its origin).
    """

    points: Tensor | None = None  # [B, V, height, width, 3] world
    local_points: Tensor | None = None  # [B, V, height, width, 3] in the frame of each camera
    conf: Tensor | None = None  # [B, V, height, width, 1] logit; its sigmoid is a probability
    camera_poses: Tensor | None = None  # [B, V, 4, 4] camera to world
    extrinsics: Tensor | None = None  # [B, V, 3, 4] world to camera, the inverse of `camera_poses`
    intrinsics: Tensor | None = None  # always None: π³ predicts none; they can be fitted to `local_points`


@register
class Pi3Model(PreTrainedModel):
    """Camera poses and a point for every pixel from photos of one scene, none of them a reference view.

    `Pi3Model.from_pretrained("yyfz233/Pi3")` reads the original repository as it is.

    Attributes:
        frames_chunk_size: views that small decoders and heads work on at a time; changes memory, not results.
    """

    config_class = Pi3Config
    base_model_prefix = "pi3"
    main_input_name = "imgs"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (the form that transformers asks for)
    _keep_in_fp32_modules_strict = ["point_head", "conf_head", "camera_head"]  # noqa: RUF012

    image_mean: Tensor
    image_std: Tensor
    frames_chunk_size = 8

    def __init__(self, config: Pi3Config) -> None:
        super().__init__(config)
        dim = config.decoder_embed_dim
        self.register_token = nn.Parameter(torch.zeros(1, 1, NUM_SPECIAL_TOKENS, dim))
        self.register_buffer("image_mean", _per_channel(IMAGE_MEAN))
        self.register_buffer("image_std", _per_channel(IMAGE_STD))
        self.encoder = build_encoder(
            config.patch_embed,
            img_size=config.img_size,
            patch_size=config.patch_size,
            embed_dim=dim,
            mask_token=False,
        )
        self.decoder = nn.ModuleList(_backbone_block(config) for _ in range(config.decoder_depth))
        self.point_decoder = FrameDecoder(2 * dim, DECODER_DIM)
        self.point_head = PatchesToPixels(DECODER_DIM, 3, config.patch_size)
        self.conf_decoder = FrameDecoder(2 * dim, DECODER_DIM)
        self.conf_head = PatchesToPixels(DECODER_DIM, 1, config.patch_size)
        self.camera_decoder = FrameDecoder(2 * dim, CAMERA_DIM)
        self.camera_head = Pi3CameraHead(CAMERA_DIM)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_parameters(module)
        if module is self:  # a checkpoint without them must not leave uninitialised memory
            init.copy_(self.image_mean, _per_channel(IMAGE_MEAN))
            init.copy_(self.image_std, _per_channel(IMAGE_STD))

    def forward(self, imgs: Tensor, output_device: torch.device | str | None = None) -> Pi3Output:
        """Reconstruct B sets of V views.

        Args:
            imgs: [B, V, 3, height, width] or [V, 3, height, width] (B = 1), RGB in [0, 1]; height and width
                are multiples of `config.patch_size`. `Pi3ImageProcessor` makes it from photos.
            output_device: where the outputs are to be; each chunk of views goes there when it is finished.
                "cpu" saves a GPU 28 bytes per pixel; None: where the model is.

        Raises:
            ValueError: if shape or dtype do not fit.
        """
        size = self.config.patch_size
        imgs = _checked(imgs[None] if imgs.ndim == 4 else imgs, size)
        num_sets, num_views, _, height, width = imgs.shape
        grid = (height // size, width // size)
        heads = results_on(output_device, self._heads)
        chunks = in_chunks(heads, self._backbone(imgs, grid), self.frames_chunk_size, grid)
        points, local_points, conf, poses = (x.unflatten(0, (num_sets, num_views)) for x in chunks)
        return Pi3Output(points, local_points, conf, poses, invert_rigid(poses[..., :3, :]))

    def _backbone(self, imgs: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Outputs of the last two blocks, [B·V, P, C] each."""
        num_sets, num_views = imgs.shape[:2]
        images = (at_least_float32(imgs.flatten(0, 1)) - self.image_mean) / self.image_std
        patches = self.encoder(images)
        registers = self.register_token[0].to(patches.dtype).expand(len(patches), -1, -1)
        x = torch.cat((registers, patches), dim=1)
        num_tokens = x.shape[1]
        head_dim = self.config.decoder_embed_dim // self.config.decoder_num_heads
        pos = rope_angles(grid, head_dim, NUM_SPECIAL_TOKENS, x.device)
        previous = x
        for index, block in enumerate(self.decoder):
            previous = x
            if index % 2:  # global attention: all views of a set in one sequence
                sequence = x.reshape(num_sets, num_views * num_tokens, -1)
                x = block(sequence, pos=pos).reshape(x.shape)
            else:  # frame attention
                x = block(x, pos=pos)
        return previous, x

    def _heads(
        self, tokens: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """World points, local points, confidence and camera-to-world poses of N views, from two [N, P, C]."""
        x = torch.cat(tuple(tokens), dim=-1)
        pos = rope_angles(grid, self.point_decoder.head_dim, NUM_SPECIAL_TOKENS, x.device)
        point, conf, camera = (
            at_least_float32(decoder(x, pos)[:, NUM_SPECIAL_TOKENS:])
            for decoder in (self.point_decoder, self.conf_decoder, self.camera_decoder)
        )
        with torch.autocast(x.device.type, enabled=False):
            xy, z = self.point_head(point, grid).split((2, 1), dim=-1)
            z = z.exp()
            local_points = torch.cat((xy * z, z), dim=-1)
            poses = self.camera_head(camera)
            rotation, translation = poses[:, :3, :3], poses[:, :3, 3]
            points = torch.einsum("nij,nhwj->nhwi", rotation, local_points) + translation[:, None, None]
            return points, local_points, self.conf_head(conf, grid), poses


def _backbone_block(config: Pi3Config) -> Block:
    dim, num_heads, scale = config.decoder_embed_dim, config.decoder_num_heads, config.layer_scale_init
    block = Block(dim, num_heads, norm_eps=1e-6, layer_scale_init=scale, qk_norm=True, rope=True)
    block.attn.q_norm = SameDtypeHeadNorm(dim // num_heads, eps=1e-5)
    block.attn.k_norm = SameDtypeHeadNorm(dim // num_heads, eps=1e-5)
    return block


def _checked(imgs: Tensor, patch_size: int) -> Tensor:
    if imgs.ndim != 5 or imgs.shape[2] != 3 or 0 in imgs.shape:
        raise ValueError(
            f"imgs must be [V, 3, height, width] or [B, V, 3, height, width], got {list(imgs.shape)}."
        )
    if not imgs.is_floating_point():
        raise ValueError(f"imgs must be floating point in [0, 1], got {imgs.dtype}; divide by 255.")
    if imgs.shape[3] % patch_size or imgs.shape[4] % patch_size:
        raise ValueError(
            f"height and width of imgs must be multiples of the patch size {patch_size}, "
            f"got {imgs.shape[3]} x {imgs.shape[4]}; Pi3ImageProcessor makes such images from photos."
        )
    return imgs


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)
