"""Sparse global attention of one layer: pool, budget, select, attend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import HeSSConfig
from .kernels.hess_attention import block_sparse_attention, dense_below_tokens
from .sparsity import BlockPlan

if TYPE_CHECKING:
    from .backbones.base import TokenLayout

_NOT_FINITE = (
    "q or k of a global attention layer contains NaN or infinity; check that the images are finite and in "
    "[0, 1], that the checkpoint loaded completely, and the precision (float16 overflows, bfloat16 does not)."
)


class HeSSAttentionProcessor:
    """Attention of one global layer over the blocks that its heads can afford.

    Special tokens, and tokens after all views, are never skipped: as queries they attend to every token, as
    keys every query attends to them. Patch queries attend to selected blocks of patch keys (`BlockPlan`).
    With `special_keys="sparse-vggt"` the special keys that fit into the last patch block share its lot, as in
    SparseVGGT's public code, and only the others are never skipped.
    Plain data: it can be pickled and copied, and adds nothing to a model's state dict.

    Attributes:
        kept_blocks: [B, H] int64 on the device of the last call, the blocks each head attended to; else None.
        num_blocks: Mq * Mk of the last call. `kept_blocks / num_blocks` is the density; special tokens are
            not counted in either.
    """

    def __init__(self, head_weights: Sequence[float] | None, config: HeSSConfig) -> None:
        """Check and keep the settings of one layer.

        Args:
            head_weights: Head sensitivity scores of this layer [H], finite, >= 0 and not all zero; only
                ratios matter. None is allowed for `allocation="uniform"`, which does not look at them.
            config: The settings of the run.

        Raises:
            ValueError: if the weights break these rules.
        """
        self.head_weights = None if head_weights is None else tuple(float(w) for w in head_weights)
        self.config = config
        self.kept_blocks: Tensor | None = None
        self.num_blocks = 0
        if self.head_weights is None:
            if config.allocation != "uniform":
                raise ValueError(
                    f"allocation {config.allocation!r} needs head_weights, got None; "
                    "give scores or use allocation='uniform'."
                )
        elif not all(math.isfinite(w) and w >= 0 for w in self.head_weights) or not any(self.head_weights):
            raise ValueError(
                f"head_weights must be finite, >= 0 and not all zero, got {self.head_weights}; "
                "calibrate the scores again."
            )

    @property
    def density(self) -> Tensor | None:
        """[B, H] float64: `kept_blocks / num_blocks` of the last call; None before the first."""
        return None if self.kept_blocks is None else self.kept_blocks.double() / self.num_blocks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
        """Attend from every token.

        Under autocast q, k and v are first cast to its dtype, as PyTorch's own attention does.

        Args:
            q: [B, H, T, D] queries after qk-norm and RoPE, in the order of `layout`.
            k: [B, H, T, D] keys, likewise.
            v: [B, H, T, D] values.
            layout: How T divides into views, special and patch tokens.

        Returns:
            [B, H, T, D] in the order of the input.

        Raises:
            ValueError: if T does not fit the layout, the number of heads does not fit the weights,
                `qk_dtype="fp8"` cannot be had here, or q or k is not finite (on CUDA a device-side
                assertion, so that no layer waits for the GPU).
        """
        if q.ndim != 4 or q.shape[2] != layout.num_tokens:
            more = f" and {layout.num_trailing_tokens} after them" if layout.num_trailing_tokens else ""
            raise ValueError(
                f"q has shape {list(q.shape)}, the layout has {layout.num_views} views of "
                f"{layout.tokens_per_view} tokens{more}; q must be [B, H, {layout.num_tokens}, D]."
            )
        _require_finite(q, k)
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        patches = layout.num_views * layout.patches_per_view
        self.num_blocks = -(-patches // self.config.q_block_size) * -(-patches // self.config.kv_block_size)
        least = self.config.dense_below_tokens
        if layout.num_tokens < (dense_below_tokens(q.device) if least == "auto" else least):
            self.kept_blocks = torch.full(q.shape[:2], self.num_blocks, device=q.device)
            return F.scaled_dot_product_attention(q, k, v)

        (special_q, patch_q), (special_k, patch_k), (special_v, patch_v) = (
            _split(x, layout) for x in (q, k, v)
        )
        plan = self.plan(patch_q, patch_k)
        if self.config.special_keys == "sparse-vggt":
            # The last patch block is filled up with special tokens, whose keys then share its lot. Queries
            # and values go along so that shapes agree; the rows of the queries are cut off again.
            free = -patches % self.config.kv_block_size
            patch_q, patch_k, patch_v = (
                torch.cat([patch, special[:, :, :free]], dim=2)
                for patch, special in ((patch_q, special_q), (patch_k, special_k), (patch_v, special_v))
            )
            special_k, special_v = special_k[:, :, free:], special_v[:, :, free:]
        self.kept_blocks = plan.row_counts.sum(-1)
        parts = []
        for heads, selection in plan:
            part = block_sparse_attention(
                patch_q[:, heads],
                patch_k[:, heads],
                patch_v[:, heads],
                selection.kv_num_blocks,
                selection.kv_indices,
                special_k=special_k[:, heads],
                special_v=special_v[:, heads],
                q_block_size=self.config.q_block_size,
                kv_block_size=self.config.kv_block_size,
                backend=self.config.backend,
                qk_dtype=self.config.qk_dtype,
            )
            parts.append(part)
            del selection  # before the next one is made: of a million tokens each is half a gigabyte
        patch_out = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[:, :, :patches]
        return _join(F.scaled_dot_product_attention(special_q, k, v), patch_out, layout)

    def plan(self, patch_q: Tensor, patch_k: Tensor) -> BlockPlan:
        """Which blocks to attend to; all that is not attention itself."""
        return BlockPlan(patch_q, patch_k, self.head_weights, self.config)


def _require_finite(q: Tensor, k: Tensor) -> None:
    # A sum is finite only if all its terms are, and needs no [B, H, T, D] of flags.
    finite = (q.sum(dtype=torch.float32) + k.sum(dtype=torch.float32)).isfinite()
    if q.is_cuda:
        torch._assert_async(finite, _NOT_FINITE)
    elif not finite:
        raise ValueError(_NOT_FINITE)


def _split(x: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """[B, H, T, D] -> tokens never masked (special of all views, trailing), and patch tokens [B, H, N, D]."""
    trailing = layout.num_trailing_tokens
    in_views, after = x.split([layout.num_tokens - trailing, trailing], dim=2)
    views = in_views.unflatten(2, (layout.num_views, layout.tokens_per_view))
    sizes = [layout.num_special_tokens, layout.patches_per_view]
    if layout.special_last:
        patch, special = views.split(sizes[::-1], dim=3)
    else:
        special, patch = views.split(sizes, dim=3)
    return torch.cat([special.flatten(2, 3), after], dim=2), patch.flatten(2, 3)


def _join(special: Tensor, patch: Tensor, layout: TokenLayout) -> Tensor:
    """The inverse of `_split`."""
    trailing = layout.num_trailing_tokens
    special, after = special.split([special.shape[2] - trailing, trailing], dim=2)
    special = special.unflatten(2, (layout.num_views, layout.num_special_tokens))
    patch = patch.unflatten(2, (layout.num_views, layout.patches_per_view))
    parts = [patch, special] if layout.special_last else [special, patch]
    in_views = torch.cat(parts, dim=3).flatten(2, 3)
    return torch.cat([in_views, after], dim=2) if trailing else in_views
