"""Tiny stand-ins for Depth Anything 3 and MapAnything, which share little with VGGT; see `doubles_family`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from double_layers import (
    Block,
    DepthAnythingAttention,
    Encoder,
    PatchEmbed,
    PixelHead,
    Rope2d,
    SharingAttention,
    token_positions,
)
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from hess_plugin.geometry.cameras import decode_pose, quaternion_to_rotation


class Vit(nn.Module):
    """Depth Anything 3's encoder: odd blocks from `alt_start` on attend over all views."""

    def __init__(self, dim: int, num_heads: int, depth: int, alt_start: int) -> None:
        super().__init__()
        self.patch_size, self.alt_start, self.rope = 4, alt_start, Rope2d()
        self.patch_embed = PatchEmbed(4, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.camera_token = nn.Parameter(torch.randn(1, 2, dim))
        self.register_tokens = None
        self.blocks = nn.ModuleList(
            Block(dim, DepthAnythingAttention(dim, num_heads, i >= alt_start, self._rope_of(i)))
            for i in range(depth)
        )

    def _rope_of(self, index: int) -> nn.Module | None:
        return self.rope if index >= self.alt_start else None

    def get_intermediate_layers(self, images: Tensor) -> Tensor:
        """[B, V, 3, height, width] to [B, V, 1 + patches, 2 C]: last frame and last global tokens."""
        batch, views, _, height, width = images.shape
        patches = self.patch_embed(images.flatten(0, 1))
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        pos = token_positions((height // 4, width // 4), 1, x.device).expand(len(x), -1, -1)
        constant = pos.clamp(max=1).unflatten(0, (batch, views)).flatten(1, 2)
        x = local = x.unflatten(0, (batch, views))
        order = torch.arange(views)
        for index, block in enumerate(self.blocks):
            if index == self.alt_start - 1 and views >= 3:
                order = order.roll(1)  # the last view is the reference, to see that order does not matter
                x, local = x[:, order], local[:, order]
            if index == self.alt_start:
                token = self.camera_token[:, [0] + [1] * (views - 1)]
                x[:, :, 0] = token  # in place, as the original
            if index >= self.alt_start and index % 2 and self.alt_start != -1:
                x = block(x.flatten(1, 2), pos=constant, attn_mask=None).unflatten(1, (views, -1))
            else:
                rotated = None if block.attn.rope is None else pos
                x = local = block(x.flatten(0, 1), pos=rotated).unflatten(0, (batch, views))
        return torch.cat([local, x], dim=-1)[:, order.argsort()]


class DinoV2(nn.Module):
    """The wrapper `backbone` around the encoder `pretrained`."""

    def __init__(self, dim: int, num_heads: int, depth: int, alt_start: int) -> None:
        super().__init__()
        self.pretrained = Vit(dim, num_heads, depth, alt_start)

    def forward(self, x: Tensor) -> Tensor:
        return self.pretrained.get_intermediate_layers(x)


class DepthAnything3Net(nn.Module):
    """The network inside the API object, on normalised images; the monocular one has no camera decoder."""

    def __init__(self, alt_start: int, dim: int = 32, num_heads: int = 4, depth: int = 6) -> None:
        super().__init__()
        self.backbone = DinoV2(dim, num_heads, depth, alt_start)
        self.head = PixelHead(2 * dim, 4, 2)
        self.cam_dec = None if alt_start == -1 else nn.Linear(2 * dim, 9)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.backbone(x)
        size = (x.shape[-2], x.shape[-1])
        maps = self.head(tokens[:, :, 1:], (size[0] // 4, size[1] // 4))
        result = {"depth": maps[..., 0].exp(), "depth_conf": 1 + maps[..., 1].exp()}
        if self.cam_dec is not None:
            pose = 0.1 * self.cam_dec(tokens[:, :, 0]) + x.new_tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1])
            extrinsics, intrinsics = decode_pose(pose, size)
            result |= {"extrinsics": extrinsics, "intrinsics": intrinsics}
        return result


class NestedDepthAnything3Net(nn.Module):
    """The any-view network `da3`, scaled by a monocular metric one; in place, so without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.da3, self.da3_metric = DepthAnything3Net(alt_start=2), DepthAnything3Net(alt_start=-1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        result, metric = self.da3(x), self.da3_metric(x)
        scale = metric["depth"].mean() / result["depth"].mean()
        result["depth"] *= scale
        result["extrinsics"][..., 3] *= scale
        return result


class TinyDepthAnything3(nn.Module, PyTorchModelHubMixin):
    """Double of `depth_anything_3.api.DepthAnything3`: swallows keywords; its forward has no gradients."""

    def __init__(self, model_name: str = "da3-tiny", **kwargs: object) -> None:
        super().__init__()
        nested = model_name == "da3nested-tiny"
        alt_start = -1 if model_name == "da3mono-tiny" else 2
        self.model = NestedDepthAnything3Net() if nested else DepthAnything3Net(alt_start)

    @torch.inference_mode()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model(image)


@dataclass
class SharingInput:
    """What MapAnything's `info_sharing` takes: features of each view and two kinds of further tokens."""

    features: list[Tensor]  # V times [B, C, rows, columns]
    additional_input_tokens: Tensor | None = None  # [B, C, tokens]
    additional_input_tokens_per_view: list[Tensor] | None = None  # V times [B, C, tokens]


class InfoSharing(nn.Module):
    """Alternating attention, global first; gives tokens of views [B, V, P, C] and of the sequence."""

    def __init__(self, dim: int, num_heads: int, depth: int, scalable: bool, entropy: bool) -> None:
        super().__init__()
        self.proj_embed, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.self_attention_blocks = nn.ModuleList(
            Block(dim, SharingAttention(dim, num_heads, scalable, entropy)) for _ in range(depth)
        )
        self.register_buffer("view_pos_table", torch.randn(1, dim))

    def forward(self, model_input: SharingInput) -> tuple[Tensor, Tensor]:
        views = torch.stack([each.flatten(2).mT for each in model_input.features], dim=1)
        if model_input.additional_input_tokens_per_view is not None:
            further = torch.stack([each.mT for each in model_input.additional_input_tokens_per_view], dim=1)
            views = torch.cat([views, further], dim=2)
        batch, count, per_view, _ = views.shape
        x = self.proj_embed(torch.cat([views.flatten(1, 2), model_input.additional_input_tokens.mT], dim=1))
        x = torch.cat([x[:, :per_view] + self.view_pos_table, x[:, per_view:]], dim=1)
        positions = [None] * count
        for index, block in enumerate(self.self_attention_blocks):
            if index % 2 == 0:
                x = block(x, positions)
            else:
                frames = x[:, : count * per_view].reshape(batch * count, per_view, -1)
                frames = block(frames, positions).reshape(batch, count * per_view, -1)
                x = torch.cat([frames, x[:, count * per_view :]], dim=1)
        x = self.norm(x)
        return x[:, : count * per_view].unflatten(1, (count, per_view)), x[:, count * per_view :]


class TinyMapAnything(nn.Module, PyTorchModelHubMixin):
    """Double of `mapanything.models.MapAnything`: a list of view dicts in, a list of view dicts out."""

    def __init__(
        self,
        embed_dim: int = 32,
        num_heads: int = 4,
        token_per_view: bool = True,
        scalable: bool = False,
        entropy: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(4, embed_dim, num_heads)
        self.encoder.data_norm_type = "dinov2"
        self.cls_token = nn.Parameter(torch.randn(embed_dim, 1)) if token_per_view else None
        self.scale_token = nn.Parameter(torch.randn(embed_dim, 1))
        self.info_sharing = InfoSharing(embed_dim, num_heads, 4, scalable, entropy)
        self.dense_head, self.pose_head = PixelHead(embed_dim, 4, 4), nn.Linear(embed_dim, 7)
        self.scale_head = nn.Linear(embed_dim, 1)

    def forward(self, views: list[dict]) -> list[dict[str, Tensor]]:
        assert views[0]["data_norm_type"] == [self.encoder.data_norm_type]
        images = torch.stack([view["img"] for view in views], dim=1)
        batch, count, _, height, width = images.shape
        grid = (height // 4, width // 4)
        features = self.encoder(images.flatten(0, 1)).mT.unflatten(-1, grid).unflatten(0, (batch, count))
        per_view = None if self.cls_token is None else [self.cls_token.expand(batch, -1, -1)] * count
        scale_token = self.scale_token.expand(batch, -1, -1)
        tokens, scale = self.info_sharing(SharingInput(list(features.unbind(1)), scale_token, per_view))
        return self._heads(tokens[:, :, : grid[0] * grid[1]], scale, grid)

    def _heads(self, patches: Tensor, scale: Tensor, grid: tuple[int, int]) -> list[dict[str, Tensor]]:
        metric = self.scale_head(scale[:, 0]).exp()[:, None]  # [B, 1, 1]
        maps = self.dense_head(patches, grid)
        rays = F.normalize(torch.cat([maps[..., :2], torch.ones_like(maps[..., :1])], dim=-1), dim=-1)
        local = rays * (maps[..., 2:3].exp() * metric[..., None, None])
        pose = self.pose_head(patches.mean(2)) + patches.new_tensor([0.0, 0, 0, 0, 0, 0, 1])
        quaternions, centers = F.normalize(pose[..., 3:], dim=-1), pose[..., :3] * metric
        turned = torch.einsum("bvij,bvhwj->bvhwi", quaternion_to_rotation(quaternions), local)
        outputs = {
            "pts3d": turned + centers[:, :, None, None],
            "pts3d_cam": local,
            "conf": 1 + maps[..., 3].exp(),
            "cam_trans": centers,
            "cam_quats": quaternions,
        }
        count = patches.shape[1]
        return [{name: value[:, i] for name, value in outputs.items()} for i in range(count)]
