"""Tiny stand-ins for the original VGGT and π³ classes: same module trees, call conventions and output keys.

Users bring the real packages; these doubles let every test run without them. What matters for patching is
kept: where global attention lies and how it is called, special tokens, RoPE inside the attention, qk-norm,
activation checkpointing while training, the mixin loader. Encoder and dense heads have one layer each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from double_layers import Block, Encoder, Pi3Attention, PixelHead, Rope2d, VggtAttention, token_positions
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Aggregator(nn.Module):
    """Alternating frame and global blocks over [B, V, 3, height, width] images."""

    def __init__(self, patch_size: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_size, self.patch_start_idx = patch_size, 5
        self.patch_embed = Encoder(patch_size, dim, num_heads)
        self.rope = Rope2d()
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(dim, VggtAttention(dim, num_heads, rope=self.rope)) for _ in range(depth))
            for _ in range(2)
        )
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.randn(1, 2, 4, dim))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("_resnet_mean", mean.view(1, 1, 3, 1, 1), persistent=False)
        self.register_buffer("_resnet_std", std.view(1, 1, 3, 1, 1), persistent=False)

    def _run(self, block: nn.Module, x: Tensor, pos: Tensor) -> Tensor:
        if self.training:
            return checkpoint(block, x, pos=pos, use_reentrant=False)
        return block(x, pos=pos)

    def _attend_globally(self, block: nn.Module, x: Tensor, pos: Tensor, views: int) -> Tensor:
        return self._run(block, x, pos)

    def forward(self, images: Tensor) -> tuple[list[Tensor], int]:
        batch, views, _, height, width = images.shape
        patches = self.patch_embed(((images - self._resnet_mean) / self._resnet_std).flatten(0, 1))
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, views - 1, -1, -1)], dim=1)
        x = torch.cat([special.expand(batch, -1, -1, -1).flatten(0, 1), patches], dim=1)
        grid = (height // self.patch_size, width // self.patch_size)
        pos = token_positions(grid, self.patch_start_idx, x.device).expand(batch * views, -1, -1)
        outputs = []
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            frame = self._run(frame_block, x, pos)
            merged = frame.unflatten(0, (batch, views)).flatten(1, 2)
            merged_pos = pos.unflatten(0, (batch, views)).flatten(1, 2)
            merged = self._attend_globally(global_block, merged, merged_pos, views)
            x = merged.unflatten(1, (views, -1)).flatten(0, 1)
            outputs.append(torch.cat([frame, x], dim=-1).unflatten(0, (batch, views)))
        return outputs, self.patch_start_idx


class CameraHead(nn.Module):
    """Camera token to nine pose numbers per view, in two refinements; FoV starts near 1 rad."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.trunk = nn.ModuleList([Block(dim, VggtAttention(dim, num_heads, qk_norm=False))])
        self.token_norm, self.embed_pose, self.pose_branch = (
            nn.LayerNorm(dim),
            nn.Linear(9, dim),
            nn.Linear(dim, 9),
        )
        nn.init.normal_(self.pose_branch.weight, std=0.1 / dim**0.5)
        self.pose_branch.bias.data = torch.tensor([0.0, 0, 0, 0, 0, 0, 0.5, 0.5, 0.5])

    def forward(self, tokens: Tensor) -> list[Tensor]:
        camera, pose, poses = self.token_norm(tokens[:, :, 0]), None, []
        for _ in range(2):
            x = camera if pose is None else camera + self.embed_pose(pose.detach())
            delta = self.pose_branch(self.trunk[0](x))
            pose = delta if pose is None else pose.detach() + delta
            poses.append(torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1))
        return poses


class TinyVGGT(nn.Module, PyTorchModelHubMixin):
    """Double of `vggt.models.vggt.VGGT`: aggregator, camera, depth and point heads; fixed init arguments.

    Images [V, 3, height, width] or [B, V, 3, height, width] in [0, 1]; sides are multiples of `patch_size`.
    """

    def __init__(
        self,
        patch_size: int = 4,
        embed_dim: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        enable_point: bool = True,
        enable_depth: bool = True,
    ) -> None:
        super().__init__()
        self.aggregator = Aggregator(patch_size, embed_dim, depth, num_heads)
        self.camera_head = CameraHead(2 * embed_dim, num_heads)
        self.point_head = PixelHead(2 * embed_dim, patch_size, 4) if enable_point else None
        self.depth_head = PixelHead(2 * embed_dim, patch_size, 2) if enable_depth else None

    def forward(self, images: Tensor, query_points: Tensor | None = None) -> dict[str, Tensor | list[Tensor]]:
        images = images[None] if images.ndim == 4 else images
        outputs, start = self.aggregator(images)
        grid = tuple(side // self.aggregator.patch_size for side in images.shape[-2:])
        with torch.autocast(
            images.device.type, enabled=False
        ):  # heads run in full precision, as in the original
            tokens = outputs[-1].to(self.camera_head.embed_pose.weight.dtype)
            result = self._heads(tokens, start, grid)
        return result if self.training else result | {"images": images}

    def _heads(self, tokens: Tensor, start: int, grid: tuple[int, int]) -> dict[str, Tensor | list[Tensor]]:
        poses = self.camera_head(tokens)
        result = {"pose_enc": poses[-1], "pose_enc_list": poses}
        patches = tokens[:, :, start:]
        if self.depth_head is not None:
            maps = self.depth_head(patches, grid)
            result |= {"depth": maps[..., :1].exp(), "depth_conf": 1 + maps[..., 1].exp()}
        if self.point_head is not None:
            maps = self.point_head(patches, grid)
            points = maps[..., :3].sign() * maps[..., :3].abs().expm1()
            result |= {"world_points": points, "world_points_conf": 1 + maps[..., 3].exp()}
        return result


class FrameDecoder(nn.Module):
    """π³'s small frame-wise decoders: projects, one block with RoPE, linear_out."""

    def __init__(self, in_dim: int, dim: int, num_heads: int, rope: nn.Module) -> None:
        super().__init__()
        self.projects = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList([Block(dim, Pi3Attention(dim, num_heads, qk_norm=False, rope=rope))])
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, xpos: Tensor) -> Tensor:
        return self.linear_out(self.blocks[0](self.projects(x), xpos=xpos))


class Pi3CameraHead(nn.Module):
    """Patch tokens to camera-to-world poses [b, 4, 4]: rotation nearest to `fc_rot`, translation `fc_t`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc_t, self.fc_rot = nn.Linear(dim, 3), nn.Linear(dim, 9)

    def forward(self, patches: Tensor) -> Tensor:
        feature = patches.mean(1)
        u, _, vt = torch.linalg.svd(self.fc_rot(feature).unflatten(-1, (3, 3)))
        sign = torch.linalg.det(u @ vt)[:, None, None] * torch.tensor([0.0, 0.0, 1.0], device=u.device)
        rotation = (u * (sign + torch.tensor([1.0, 1.0, 0.0], device=u.device))) @ vt
        pose = torch.cat([rotation, self.fc_t(feature)[..., None]], dim=-1)
        return torch.cat([pose, pose.new_tensor([0.0, 0, 0, 1]).expand(len(pose), 1, 4)], dim=1)


class TinyPi3(nn.Module, PyTorchModelHubMixin):
    """Double of `pi3.models.pi3.Pi3`: odd blocks are global; imgs [B, V, 3, height, width] in [0, 1]."""

    def __init__(self, patch_size: int = 4, embed_dim: int = 32, depth: int = 4, num_heads: int = 4) -> None:
        super().__init__()
        self.patch_size, self.patch_start_idx = patch_size, 5
        self.encoder = Encoder(patch_size, embed_dim, num_heads)
        self.rope = Rope2d()
        self.register_token = nn.Parameter(torch.randn(1, 1, 5, embed_dim))
        self.register_buffer("image_mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.decoder = nn.ModuleList(
            Block(embed_dim, Pi3Attention(embed_dim, num_heads, rope=self.rope)) for _ in range(depth)
        )
        self.point_decoder, self.conf_decoder, self.camera_decoder = (
            FrameDecoder(2 * embed_dim, embed_dim, num_heads, self.rope) for _ in range(3)
        )
        self.point_head, self.conf_head = (PixelHead(embed_dim, patch_size, c) for c in (3, 1))
        self.camera_head = Pi3CameraHead(embed_dim)

    def forward(self, imgs: Tensor) -> dict[str, Tensor]:
        batch, views, _, height, width = imgs.shape
        grid = (height // self.patch_size, width // self.patch_size)
        x = self.encoder((imgs.flatten(0, 1) - self.image_mean) / self.image_std)
        x = torch.cat([self.register_token[0].expand(len(x), -1, -1), x], dim=1)
        pos = token_positions(grid, self.patch_start_idx, x.device).expand(len(x), -1, -1)
        outputs = []
        for index, block in enumerate(self.decoder):
            if index % 2 == 0:
                x = block(x, xpos=pos)
            else:
                merged = x.unflatten(0, (batch, views)).flatten(1, 2)
                x = block(merged, xpos=pos.unflatten(0, (batch, views)).flatten(1, 2))
                x = self._after_global(index, x.unflatten(1, (views, -1)).flatten(0, 1), views)
            outputs.append(x)
        x = torch.cat(outputs[-2:], dim=-1)
        decoders = (self.point_decoder, self.conf_decoder, self.camera_decoder)
        with torch.autocast(x.device.type, enabled=False):  # as the original's heads
            x = x.to(self.point_decoder.projects.weight.dtype)
            features = [decoder(x, pos)[:, self.patch_start_idx :] for decoder in decoders]
            return self._heads(*features, grid, views)

    def _after_global(self, index: int, x: Tensor, views: int) -> Tensor:
        return x

    def _heads(
        self, point: Tensor, conf: Tensor, camera: Tensor, grid: tuple[int, int], views: int
    ) -> dict[str, Tensor]:
        batch = len(point) // views
        xy, z = self.point_head(point, grid).split([2, 1], dim=-1)
        local = torch.cat([xy * z.exp(), z.exp()], dim=-1).unflatten(0, (batch, views))
        poses = self.camera_head(camera).unflatten(0, (batch, views))
        rotation, translation = poses[..., :3, :3], poses[..., :3, 3]
        points = torch.einsum("bvij,bvhwj->bvhwi", rotation, local) + translation[:, :, None, None]
        confidence = self.conf_head(conf, grid).unflatten(0, (batch, views))
        return {"points": points, "local_points": local, "conf": confidence, "camera_poses": poses}


def tiny_native_vggt() -> nn.Module:
    """The native `VggtModel`, with layer scales of 1 like the doubles."""
    from hess_plugin.models import VggtConfig, VggtModel

    config = VggtConfig(
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=4,
        patch_embed="conv",
        camera_trunk_depth=1,
        camera_num_heads=4,
        dpt_features=8,
        dpt_out_channels=(4, 4, 4, 4),
        dpt_layers=(0, 0, 1, 1),
        enable_track=False,
        layer_scale_init=1.0,
    )
    return VggtModel(config)


@contextmanager
def tiny_pi3_sizes() -> Iterator[None]:
    """π³'s encoder and small decoders have fixed sizes: smaller ones, while a model is built or loaded."""
    from hess_plugin.models import configuration, pi3, pi3_heads

    small = {"DECODER_DIM": 32, "DECODER_NUM_HEADS": 4, "DECODER_DEPTH": 1}
    with (
        mock.patch.dict(configuration.ENCODERS, tiny=(32, 1, 4)),
        mock.patch.multiple(pi3_heads, **small),
        mock.patch.object(pi3, "DECODER_DIM", 32),
    ):
        yield


def tiny_native_pi3() -> nn.Module:
    """The native `Pi3Model`."""
    from hess_plugin.models import Pi3Config, Pi3Model

    with tiny_pi3_sizes():
        config = Pi3Config(
            img_size=16,
            patch_size=4,
            patch_embed="tiny",
            decoder_embed_dim=32,
            decoder_depth=4,
            decoder_num_heads=4,
            layer_scale_init=1.0,
        )
        return Pi3Model(config)


# Tests of everything that works on a loaded model run over all of these.
TINY_MODELS: dict[str, Callable[[], nn.Module]] = {
    "vggt": TinyVGGT,
    "pi3": TinyPi3,
    "native-vggt": tiny_native_vggt,
    "native-pi3": tiny_native_pi3,
}
