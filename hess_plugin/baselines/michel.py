"""Head pruning by the gradient of a gate: Michel, Levy, Neubig, "Are Sixteen Heads Really Better than One?".

Neural Information Processing Systems 2019, section 4.1 (arXiv 1905.10650), written from the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .head_masks import highest


def importance(gradients: Tensor) -> Tensor:
    """`I_h = E_x |dL(x)/dg_h|`, divided by the L2 norm of its layer.

    Args:
        gradients: [N, L, H], of N scenes.

    Returns:
        [L, H] of the same type, each layer of norm 1, or 0 where the loss does not depend on it.

    Example:
        >>> importance(torch.tensor([[[3.0, -1.0]], [[-3.0, 7.0]]]))
        tensor([[0.6000, 0.8000]])
    """
    expected = gradients.abs().mean(0)
    return expected / expected.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(expected.dtype).tiny)


def kept_heads(gradients: Tensor, num_kept: int, dense_layers: Sequence[int] = ()) -> Tensor:
    """Mask [L, H] of the heads that stay: the most important ones of all layers together.

    Args:
        gradients: [N, L, H] float64.
        num_kept: heads to keep.
        dense_layers: whose heads are all kept, and counted.
    """
    return highest(importance(gradients), num_kept, dense_layers)
