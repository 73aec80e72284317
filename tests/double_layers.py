"""Layers of the doubles: what VGGT and π³ have in common, at the size of a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rope2d(nn.Module):
    """2D rotary embedding, rope(t, positions): first half of the head dim by row, second half by column."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        halves = tokens.chunk(2, dim=-1)
        return torch.cat(
            [self._rotate(half, positions[..., axis]) for axis, half in enumerate(halves)], dim=-1
        )

    def _rotate(self, half: Tensor, position: Tensor) -> Tensor:
        dim = half.shape[-1]
        frequencies = 100 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=half.device) / dim)
        angles = (position[:, None, :, None] * frequencies).to(half.dtype)
        angles = torch.cat([angles, angles], dim=-1)
        first, second = half.chunk(2, dim=-1)
        return half * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class VggtAttention(nn.Module):
    """Fused-qkv attention, called attn(x, pos=pos)."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = True, rope: nn.Module | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.rope = rope

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Pi3Attention(VggtAttention):
    """The same, called attn(x, xpos=pos), with q and k cast to v's dtype before RoPE."""

    def forward(self, x: Tensor, attn_bias: Tensor | None = None, xpos: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.rope is not None:
            q, k = self.rope(q, xpos), self.rope(k, xpos)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class StreamAttention(VggtAttention):
    """StreamVGGT's: a mask over whole sequences, or past keys and values view by view and a tuple out."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        past_key_values: tuple[Tensor, Tensor] | None = None,
        use_cache: bool = False,
    ) -> Tensor:
        assert past_key_values is None
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rope(self.q_norm(q), pos), self.rope(self.k_norm(k), pos)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class KMaskedLinear(nn.Linear):
    """A fused projection whose bias is multiplied by `bias_mask`, a buffer that removes the keys' bias."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 3 * dim)
        self.register_buffer("bias_mask", torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask)


class OmegaAttention(nn.Module):
    """VGGT-Ω's, called attn(x, attn_bias=None, rope=None): qk-norm, masked bias, no rotation here."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = KMaskedLinear(dim)
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // num_heads) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_bias: Tensor | None = None, rope: None = None) -> Tensor:
        assert attn_bias is None
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class DepthAnythingAttention(VggtAttention):
    """Depth Anything 3's, called attn(x, pos=pos, attn_mask=mask); early layers have no qk-norm or RoPE."""

    def forward(  # type: ignore[override]
        self, x: Tensor, pos: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None and pos is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class SharingAttention(nn.Module):
    """MapAnything's, called attn(x, xpos): no qk-norm, no positions, optionally sharper by token count."""

    def __init__(self, dim: int, num_heads: int, scalable: bool = False, entropy: bool = False) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(0.0)
        self.custom_positional_encoding = None
        self.use_scalable_softmax, self.use_entropy_scaling = scalable, entropy
        self.base_token_count_for_entropy_scaling, self.entropy_scaling_growth_factor = 444, 1.4

    def forward(self, x: Tensor, xpos: object = None) -> Tensor:
        count = torch.tensor(x.shape[1])
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.use_scalable_softmax:
            q = q * count.log()
        if self.use_entropy_scaling:
            q = q * (1.4 * count.log() / torch.tensor(444).log()).sqrt()
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class LayerScale(nn.Module):
    """Per-channel gain; 1 instead of 0.01, so that attention matters in an untrained model."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; all further arguments go to the attention."""

    def __init__(self, dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim), attn, LayerScale(dim)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dim), Mlp(dim), LayerScale(dim)

    def forward(self, x: Tensor, *args: object, **kwargs: Tensor | None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), *args, **kwargs))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The encoder's patch convolution, `proj`, giving [b, patches, C]."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Stands for DINOv2: `patch_embed.proj`, one block without qk-norm and RoPE, `norm`."""

    def __init__(self, patch_size: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, dim)
        self.blocks = nn.ModuleList([Block(dim, VggtAttention(dim, num_heads, qk_norm=False))])
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.blocks[0](self.patch_embed(images)))


def token_positions(grid: tuple[int, int], num_special: int, device: torch.device) -> Tensor:
    """(row, column) of every token of one view, [1, P, 2]: special tokens at (0, 0), patches from (1, 1)."""
    rows, cols = (torch.arange(1, size + 1, device=device) for size in grid)
    return F.pad(torch.cartesian_prod(rows, cols), (0, 0, num_special, 0))[None]


class PixelHead(nn.Module):
    """Linear map from patch tokens to `channels` values per pixel, [B, V, height, width, channels]."""

    def __init__(self, dim: int, patch_size: int, channels: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(dim, channels * patch_size**2)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = self.proj(patches).transpose(-1, -2).unflatten(-1, grid)
        return F.pixel_shuffle(maps, self.patch_size).movedim(-3, -1)
