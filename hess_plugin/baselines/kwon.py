"""Head pruning by Fisher information: Kwon et al., "A Fast Post-Training Pruning Framework for Transformers".

Neural Information Processing Systems 2022 (arXiv 2204.09656), written from the paper. Around the dense model
masking m costs about ½ (1 - m)ᵀ I (1 - m) of loss, I being the Fisher information of the mask. Two of its
three steps are here: the mask search with the diagonal of I, and the mask rearrangement within each layer
with the layer's block of I. The third, mask tuning, scales the masks that stay by least squares; it changes
no choice of heads, and the comparison in the HeSS paper does not mention it: left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .head_masks import highest


def fisher_information(gradients: Tensor) -> Tensor:
    """Empirical Fisher information within each layer, mean over scenes of g gᵀ.

    Args:
        gradients: [N, L, H].

    Returns:
        [L, H, H].
    """
    return torch.einsum("nlh,nlg->lhg", gradients, gradients) / len(gradients)


def rearrange(fisher: Tensor, kept: Tensor) -> Tensor:
    """Exchange kept and pruned heads of one layer while (1 - m)ᵀ I (1 - m) falls; their number stays.

    The paper's greedy search takes each pruned head once. This one always takes the exchange that gains most
    and ends when none gains anything, so that the result does not depend on the order of heads.

    Args:
        fisher: [H, H], positive semidefinite.
        kept: [H] bool, where to start.

    Returns:
        [H] bool.
    """
    pruned = (~kept).to(fisher.dtype)
    diagonal = fisher.diagonal()
    while True:
        slope = fisher @ pruned
        # (p + e_i - e_j)ᵀ I (p + e_i - e_j) - pᵀ I p, for pruning a kept i instead of a pruned j.
        change = 2 * (slope[:, None] - slope) + diagonal[:, None] + diagonal - 2 * fisher
        change = change.masked_fill(~((pruned[:, None] == 0) & (pruned == 1)), torch.inf)
        best = int(change.argmin())
        if not float(change.flatten()[best]) < -1e-12 * float(diagonal.sum()):  # rounding gains nothing
            return pruned == 0
        pruned[best // len(pruned)], pruned[best % len(pruned)] = 1, 0


def kept_heads(gradients: Tensor, num_kept: int, dense_layers: Sequence[int] = ()) -> Tensor:
    """Mask [L, H] of the heads that stay.

    All heads of the global attentions cost the same, so the mask search keeps those of the largest Fisher
    information.

    Args:
        gradients: [N, L, H] float64.
        num_kept: heads to keep.
        dense_layers: whose heads are all kept, and counted.
    """
    fisher = fisher_information(gradients)
    start = highest(fisher.diagonal(dim1=1, dim2=2), num_kept, dense_layers)
    return torch.stack([rearrange(each, kept) for each, kept in zip(fisher, start, strict=True)])
