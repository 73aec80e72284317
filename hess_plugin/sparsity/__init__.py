"""From queries and keys to the list of blocks that a layer attends to; tensors in, tensors out."""

from .budgets import baseline_counts, row_counts, water_fill
from .plan import BlockPlan
from .pooling import block_probs, pool_blocks
from .selection import BlockSelection, select_blocks

__all__ = [
    "BlockPlan",
    "BlockSelection",
    "baseline_counts",
    "block_probs",
    "pool_blocks",
    "row_counts",
    "select_blocks",
    "water_fill",
]
