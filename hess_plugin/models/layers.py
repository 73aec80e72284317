"""Transformer parts that both models are built of: rotary position embedding, attention, block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..kernels.hess_attention import norm_heads, rotate_heads

ROPE_BASE = 100.0
MLP_TOKENS = 1 << 16  # that an MLP works on at a time where no gradient is recorded: its hidden layer is wide


def rope_angles(
    grid: tuple[int, int], head_dim: int, num_special_tokens: int, device: torch.device | None = None
) -> Tensor:
    """Angles by which RoPE turns the entries of a head, for the tokens of one view, [P, D] float32.

    Convention: special tokens come first and are not turned; then patches row by row. Patch (i, j) has the
    position (i + 1, j + 1). The first half of the head follows the row, the second the column; within a half
    entry k is paired with entry k + D/4, and both have the angle position · 100^(-4k/D).

    Example:
        >>> rope_angles((1, 2), head_dim=4, num_special_tokens=1).tolist()
        [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]]
    """
    rows, cols = grid
    half = head_dim // 2
    frequency = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    row, col = (torch.arange(1, n + 1, dtype=torch.float32, device=device)[:, None] * frequency for n in grid)
    row = row[:, None].expand(rows, cols, -1)
    col = col[None, :].expand(rows, cols, -1)
    angles = torch.cat((row, row, col, col), dim=-1).flatten(0, 1)
    return F.pad(angles, (0, 0, num_special_tokens, 0))


def apply_rope(t: Tensor, pos: Tensor | None) -> Tensor:
    """Turn queries or keys [B, H, T, D] by the angles `pos` [P, D] of one view, the same in all T/P views.

    Sine and cosine are taken in float32 at least: rounded to bfloat16, an angle of 37 is off by up to 0.125.
    """
    assert pos is not None  # whoever calls an attention with RoPE passes the angles
    return rotate_heads(t, pos.to(torch.promote_types(t.dtype, torch.float32)))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_chunks(
    function: Callable[..., Any], inputs: Tensor | Sequence[Tensor], chunk_size: int, *args: Any
) -> Any:
    """What `function(inputs, *args)` gives for N items, computed for some at a time to save memory.

    Without gradients every part is written to its place at once, so that no output exists twice.

    Args:
        function: of inputs and `args`, each item on its own; returns one tensor or several, [N, ...].
        inputs: [N, ...], one tensor or several.
        chunk_size: Items at a time.
    """
    single = isinstance(inputs, Tensor)
    count = len(inputs) if single else len(inputs[0])
    if count <= chunk_size:
        return function(inputs, *args)
    chunks = (slice(start, start + chunk_size) for start in range(0, count, chunk_size))
    parts = (function(inputs[i] if single else [x[i] for x in inputs], *args) for i in chunks)
    if not torch.is_grad_enabled():
        return _collected(parts, count)
    kept = list(parts)
    several = not isinstance(kept[0], Tensor)
    return tuple(torch.cat(part) for part in zip(*kept, strict=True)) if several else torch.cat(kept)


def results_on(device: torch.device | str | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of several results, moved to a device as soon as they exist; None leaves them."""
    return lambda *args, **kwargs: tuple(x.to(device=device) for x in function(*args, **kwargs))


def _collected(parts: Iterator[Any], count: int) -> Any:
    """Tensors, or tuples of them, one after the other along the first axis."""
    outputs, filled, several = None, 0, False
    for part in parts:
        several = not isinstance(part, Tensor)
        tensors = part if several else (part,)
        if outputs is None:
            outputs = [x.new_empty(count, *x.shape[1:]) for x in tensors]
        for output, x in zip(outputs, tensors, strict=True):
            output[filled : filled + len(x)] = x
        filled += len(tensors[0])
    assert outputs is not None
    return tuple(outputs) if several else outputs[0]


class Mlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., out_dim]."""
        return self.fc2(F.gelu(self.fc1(x)))


class HeadNorm(nn.LayerNorm):
    """The qk-norm: layer norm over the entries of a head."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, D] to the same shape; the dtype is `nn.LayerNorm`'s."""
        return norm_heads(x, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """A learned factor per channel; `init_value` is what training from scratch starts with."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same shape."""
        return x * self.gamma


def init_parameters(module: nn.Module) -> None:
    """Initial values for training from scratch of the parameters that `module` itself owns.

    Tokens start at 0.02 like all else: at the original's 1e-6 a small model starts to learn far later.
    Parameters that a checkpoint has filled are left alone (by `transformers.initialization`).
    """
    if isinstance(module, LayerScale):
        init.constant_(module.gamma, module.init_value)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # keeps the variance over many convolutions
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=0.02)
        init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
        if module.elementwise_affine if isinstance(module, nn.LayerNorm) else module.affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)
    else:
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1:
                init.trunc_normal_(parameter, std=0.02)
            else:
                init.zeros_(parameter)


class Attention(nn.Module):
    """Multi-head self-attention with fused `qkv`; rows h·D .. (h+1)·D - 1 of its weight are W_Q of head h.

    `rope` is a plain attribute, `rope(t [B, H, T, D], pos) -> t`, or None where positions are not used:
    another module that adopts these children can compute the same queries and keys.
    """

    rope: Callable[[Tensor, Tensor | None], Tensor] | None

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False, rope: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = HeadNorm(self.head_dim, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(self.head_dim, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.rope = apply_rope if rope else None

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        """[B, T, C] to the same shape; `pos` is what `rope` takes, see `apply_rope`."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.rope(q, pos), self.rope(k, pos)
        # Under autocast the norms give float32; attention itself runs in the dtype of the values.
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block, with a scale on each residual branch unless `layer_scale_init` is None."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        norm_eps: float,
        layer_scale_init: float | None,
        qk_norm: bool = False,
        rope: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm, rope=rope)
        self.ls1 = nn.Identity() if layer_scale_init is None else LayerScale(dim, layer_scale_init)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = nn.Identity() if layer_scale_init is None else LayerScale(dim, layer_scale_init)

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        """[B, T, C] to the same shape; `pos` is handed to the attention."""
        x = x + self.ls1(self.attn(self.norm1(x), pos=pos))
        if torch.is_grad_enabled():
            return x + self.ls2(self.mlp(self.norm2(x)))
        for tokens in x.view(-1, x.shape[-1]).split(MLP_TOKENS):
            tokens += self.ls2(self.mlp(self.norm2(tokens)))
        return x
