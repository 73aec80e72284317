"""Global attention without some of its heads: the processor, and what all rules for choosing them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from ..backbones.base import TokenLayout


class HeadMaskProcessor:
    """Dense attention of the heads that are kept; the others output zeros and compute no attention.

    The projections stay whole, so that the model's weights do; what is skipped is attention. With all heads
    kept this is dense attention, bit for bit.
    """

    def __init__(self, kept: Sequence[bool]) -> None:
        """Keep the mask [H] of one layer."""
        self.kept = tuple(bool(each) for each in kept)
        self.density: Tensor | None = None  # [B, H] float64: 1 for heads that are kept, 0 for the others

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
        """From q, k, v [B, H, T, D] to outputs of the same shape, zero where a head is masked.

        Raises:
            ValueError: another number of heads than the mask has.
        """
        if q.shape[1] != len(self.kept):
            raise ValueError(f"the mask is for {len(self.kept)} heads, q has {q.shape[1]}.")
        self.density = torch.tensor(self.kept, dtype=torch.float64).expand(len(q), -1)
        if all(self.kept):
            return F.scaled_dot_product_attention(q, k, v)
        heads = [head for head, is_kept in enumerate(self.kept) if is_kept]
        if not heads:
            return torch.zeros_like(v)
        index = torch.tensor(heads).to(q.device, non_blocking=True)
        q, k, v = (x.index_select(1, index) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return out.new_zeros(len(out), len(self.kept), *out.shape[2:]).index_copy(1, index, out)


def highest(importance: Tensor, num_kept: int, dense_layers: Sequence[int] = ()) -> Tensor:
    """Mask of the most important heads of all layers together.

    Args:
        importance: [L, H].
        num_kept: heads to keep, exactly; more only where the dense layers alone have more.
        dense_layers: whose heads are all kept, and counted.

    Returns:
        [L, H] bool. Of equally important heads the first are kept.

    Raises:
        ValueError: a dense layer that there is not.
    """
    for layer in dense_layers:
        if layer >= len(importance):
            raise ValueError(f"dense_layers has {layer}, the gates have {len(importance)} global layers.")
    importance = importance.clone()
    importance[list(dense_layers)] = torch.inf
    num_kept = max(num_kept, len(set(dense_layers)) * importance.shape[1])
    order = importance.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(importance.numel(), dtype=torch.bool)
    kept[order[:num_kept]] = True
    return kept.view_as(importance)
