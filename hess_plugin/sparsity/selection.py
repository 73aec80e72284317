"""Which blocks a row attends to, as the compact list that attention kernels read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockSelection:
    """Key blocks attended to by each row of query blocks; field names and form as in FlexAttention."""

    kv_num_blocks: Tensor  # [B, H, Mq] int32, at least 1
    kv_indices: Tensor  # [B, H, Mq, Mk] int32, ascending; entries past the count are 0 and mean nothing


def select_blocks(probs: Tensor, counts: Tensor) -> BlockSelection:
    """The `counts` most probable key blocks of every row; of equal ones the lowest index.

    A larger count adds blocks and removes none. The list is as wide as the map, because the largest count is
    known only on the device.

    Args:
        probs: [B, H, Mq, Mk] block probabilities.
        counts: [B, H, Mq] integers in [1, Mk].

    Example:
        >>> probs = torch.tensor([0.3, 0.1, 0.3, 0.3]).view(1, 1, 1, 4)
        >>> select_blocks(probs, torch.tensor([[[2]]])).kv_indices.flatten()
        tensor([0, 2, 0, 0], dtype=torch.int32)
    """
    num_kv_blocks = probs.shape[-1]
    order = probs.argsort(dim=-1, descending=True, stable=True)
    dropped = torch.arange(num_kv_blocks, device=probs.device) >= counts[..., None]
    ascending = order.masked_fill(dropped, num_kv_blocks).sort(dim=-1).values
    indices = ascending.masked_fill(ascending == num_kv_blocks, 0)
    return BlockSelection(counts.int(), indices.int())
