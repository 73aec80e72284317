"""Image encoders: normalised images to patch tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import ENCODERS
from .layers import Block

IMAGE_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)
NUM_REGISTERS = 4  # register tokens of the encoder itself; the models drop them after it


class PatchEmbed(nn.Module):
    """One convolution: each patch of `patch_size`² pixels becomes a token."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, height, width] to [N, rows·cols, C], patches row by row."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class Dinov2Encoder(nn.Module):
    """DINOv2 vision transformer with register tokens.

    `mask_token` is part of the VGGT checkpoint but used in no forward pass; π³ has none.
    """

    def __init__(self, name: str, img_size: int, patch_size: int, mask_token: bool) -> None:
        super().__init__()
        dim, depth, num_heads = ENCODERS[name]
        self.patch_size = patch_size
        self.side = img_size // patch_size  # patches along each side of the learned position embedding
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, NUM_REGISTERS, dim))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
        self.patch_embed = PatchEmbed(patch_size, dim)
        blocks = (Block(dim, num_heads, norm_eps=1e-6, layer_scale_init=1.0) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [N, 3, height, width] to the normalised patch tokens [N, rows·cols, C]."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        x = self.patch_embed(images)
        pos_embed = self._position_embedding(grid)
        special = torch.cat((self.cls_token + pos_embed[:, :1], self.register_tokens), dim=1)
        x = torch.cat((special.expand(len(x), -1, -1), x + pos_embed[:, 1:]), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + NUM_REGISTERS :]

    def _position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """The learned embedding resized to a grid of patches, [1, 1 + rows·cols, C]."""
        if grid == (self.side, self.side):
            return self.pos_embed
        learned = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(learned, size=grid, mode="bicubic", antialias=True).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)


def build_encoder(
    name: str, *, img_size: int, patch_size: int, embed_dim: int, mask_token: bool
) -> PatchEmbed | Dinov2Encoder:
    """The image encoder of that name: "conv" or a key of `ENCODERS`."""
    if name == "conv":
        return PatchEmbed(patch_size, embed_dim)
    return Dinov2Encoder(name, img_size, patch_size, mask_token)
