"""Tiny stand-ins for further original classes: Pi3X, VGGT-Ω, StreamVGGT, Depth Anything 3, MapAnything.

As in `doubles.py`: module tree, call conventions and outputs of the originals as they are documented; the
originals themselves are never run here. Those that take or give something else than `model(images) -> dict`
are driven by their backbone's `predict`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from double_layers import (
    Block,
    Encoder,
    OmegaAttention,
    PixelHead,
    StreamAttention,
    VggtAttention,
)
from doubles import Aggregator, CameraHead, TinyPi3, TinyVGGT
from doubles_views import TinyDepthAnything3, TinyMapAnything
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Cross-attention with separate projections, of Pi3X's metric decoder."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        attention = (self.q_proj(query) @ self.k_proj(context).mT / query.shape[-1] ** 0.5).softmax(-1)
        return attention @ self.v_proj(context)


class TinyPi3X(TinyPi3):
    """Double of `pi3.models.pi3x.Pi3X`: π³ with metric scale; given poses, more attention over all views."""

    def __init__(self, patch_size: int = 4, embed_dim: int = 32, depth: int = 4, num_heads: int = 4) -> None:
        super().__init__(patch_size, embed_dim, depth, num_heads)
        self.metric_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.metric_decoder, self.metric_head = CrossAttention(embed_dim), nn.Linear(embed_dim, 1)
        self.pose_embed = nn.Linear(16, embed_dim)
        self.pose_inject_blk = nn.ModuleList([Block(embed_dim, VggtAttention(embed_dim, num_heads))])
        self._poses: Tensor | None = None

    def forward(self, imgs: Tensor, poses: Tensor | None = None) -> dict[str, Tensor]:
        self._poses = poses
        result = super().forward(imgs)
        metric = result.pop("metric")
        scaled = {key: result[key] * metric[..., None, None, None] for key in ("points", "local_points")}
        pose = result["camera_poses"]
        translation = pose[..., :3, 3:] * metric[..., None, None]
        moved = torch.cat([torch.cat([pose[..., :3, :3], translation], dim=-1), pose[..., 3:, :]], dim=-2)
        rays = result["local_points"] / result["local_points"].norm(dim=-1, keepdim=True)
        return result | scaled | {"camera_poses": moved, "metric": metric[:, 0], "rays": rays}

    def _after_global(self, index: int, x: Tensor, views: int) -> Tensor:
        if self._poses is None or index != 1:
            return x
        special, patches = x[:, : self.patch_start_idx], x[:, self.patch_start_idx :]
        patches = patches + self.pose_embed(self._poses.flatten(0, 1).flatten(1))[:, None]
        merged = self.pose_inject_blk[0](patches.unflatten(0, (-1, views)).flatten(1, 2))
        return torch.cat([special, merged.unflatten(1, (views, -1)).flatten(0, 1)], dim=1)

    def _heads(
        self, point: Tensor, conf: Tensor, camera: Tensor, grid: tuple[int, int], views: int
    ) -> dict[str, Tensor]:
        context = camera.unflatten(0, (-1, views)).flatten(1, 2)
        query = self.metric_token.expand(len(context), -1, -1)
        metric = self.metric_head(self.metric_decoder(query, context))[..., 0].exp()  # [B, 1]
        return super()._heads(point, conf, camera, grid, views) | {"metric": metric}


class OmegaAggregator(nn.Module):
    """Frame blocks, then blocks over all views; of these, number 2 attends over special tokens only."""

    def __init__(self, patch_size: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = Encoder(patch_size, dim, num_heads)
        self.camera_token = nn.Parameter(torch.randn(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.randn(1, 2, 16, dim))
        self.frame_blocks, self.inter_frame_blocks = (
            nn.ModuleList(Block(dim, OmegaAttention(dim, num_heads)) for _ in range(depth)) for _ in range(2)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, int]:
        batch, views = images.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        special = torch.cat([special[:, :1], special[:, 1:].expand(-1, views - 1, -1, -1)], dim=1)
        patches = self.patch_embed(images.flatten(0, 1)).unflatten(0, (batch, views))
        x, start = torch.cat([special.expand(batch, -1, -1, -1), patches], dim=2), special.shape[2]
        for index, (frame, inter) in enumerate(zip(self.frame_blocks, self.inter_frame_blocks, strict=True)):
            local = frame(x.flatten(0, 1), rope=None).unflatten(0, (batch, views))
            taking_part = local[:, :, :start] if index == 2 else local
            attended = inter(taking_part.flatten(1, 2), rope=None).unflatten(1, (views, -1))
            x = torch.cat([attended, local[:, :, attended.shape[2] :]], dim=2)
        return torch.cat([local, x], dim=-1), start


class TinyVGGTOmega(nn.Module):
    """Double of `vggt_omega.models.VGGTOmega`: no mixin, no point head, 17 special tokens."""

    def __init__(self, patch_size: int = 4, embed_dim: int = 32, depth: int = 4, num_heads: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.aggregator = OmegaAggregator(patch_size, embed_dim, depth, num_heads)
        self.camera_head = CameraHead(2 * embed_dim, num_heads)
        self.dense_head = PixelHead(2 * embed_dim, patch_size, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        images = images[None] if images.ndim == 4 else images
        tokens, start = self.aggregator(images)
        pose = self.camera_head(tokens)[-1]
        height, width = images.shape[-2:]
        maps = self.dense_head(tokens[:, :, start:], (height // self.patch_size, width // self.patch_size))
        return {
            "pose_enc": torch.cat([pose[..., :7], pose[..., 7:] + 0.01], dim=-1),
            "depth": maps[..., :1].exp(),
            "depth_conf": 1 + maps[..., 1].exp(),
            "camera_and_register_tokens": tokens[:, :, :start],
        }


class StreamAggregator(Aggregator):
    """VGGT's aggregator whose global attention does not see later views."""

    def __init__(self, patch_size: int, dim: int, depth: int, num_heads: int) -> None:
        super().__init__(patch_size, dim, depth, num_heads)
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(dim, StreamAttention(dim, num_heads, rope=self.rope)) for _ in range(depth))
            for _ in range(2)
        )

    def _attend_globally(self, block: nn.Module, x: Tensor, pos: Tensor, views: int) -> Tensor:
        view = torch.arange(views).repeat_interleave(x.shape[1] // views)
        mask = (view[:, None] < view) * torch.finfo(x.dtype).min
        return block(x, pos=pos, attn_mask=mask.to(x.dtype))


class TinyStreamVGGT(TinyVGGT):
    """Double of `streamvggt.models.streamvggt.StreamVGGT`: takes and gives a dict for each view."""

    def __init__(self, patch_size: int = 4, embed_dim: int = 32, depth: int = 2, num_heads: int = 4) -> None:
        super().__init__(patch_size, embed_dim, depth, num_heads)
        self.aggregator = StreamAggregator(patch_size, embed_dim, depth, num_heads)

    def forward(self, views: list[dict[str, Tensor]]) -> dict[str, list[dict[str, Tensor]]]:
        outputs = super().forward(torch.stack([view["img"] for view in views], dim=1))
        names = {
            "pose_enc": "camera_pose",
            "world_points": "pts3d_in_other_view",
            "world_points_conf": "conf",
            "depth": "depth",
            "depth_conf": "depth_conf",
        }
        return {"ress": [{new: outputs[old][:, i] for old, new in names.items()} for i in range(len(views))]}


# Beside `doubles.TINY_MODELS`; tests of what every family must do run over both.
FAMILY_MODELS: dict[str, Callable[[], nn.Module]] = {
    "pi3x": TinyPi3X,
    "vggt_omega": TinyVGGTOmega,
    "streamvggt": TinyStreamVGGT,
    "depth_anything_3": TinyDepthAnything3,
    "depth_anything_3-nested": lambda: TinyDepthAnything3("da3nested-tiny"),
    "map_anything": TinyMapAnything,
    "map_anything-v1": lambda: TinyMapAnything(token_per_view=False),
    "map_anything-scalable": lambda: TinyMapAnything(scalable=True),
    "map_anything-entropy": lambda: TinyMapAnything(entropy=True),
}
