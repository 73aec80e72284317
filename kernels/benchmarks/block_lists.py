"""What the benchmarks run on: random lists of blocks for a given sparsity, and their timing."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "torch-ext"))  # the kernels beside this file

Q_BLOCK, KV_BLOCK = 128, 64


def head_counts(heads: int, kv_blocks: int, sparsity: float, budgets: str, seed: int = 0) -> Tensor:
    """Blocks per row for every head, [H] int32, in [1, Mk]; their mean is (1 - sparsity) * Mk up to rounding.

    Args:
        heads: H.
        kv_blocks: Mk.
        sparsity: Share of blocks that is skipped, in [0, 1).
        budgets: "even", or "log-normal": weights e^(1.5 z) of standard normal z, with no head above Mk.
        seed: Of the weights.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}.")
    if budgets == "even":
        density = torch.full((heads,), 1 - sparsity, dtype=torch.float64)
    elif budgets == "log-normal":
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(heads, generator=generator, dtype=torch.float64).mul(1.5).exp()
        low, high = 0.0, float(1 / weights.min())
        for _ in range(100):  # the level at which the capped shares have the mean that is asked for
            level = (low + high) / 2
            enough = float((level * weights).clamp(max=1).mean()) >= 1 - sparsity
            low, high = (low, level) if enough else (level, high)
        density = (high * weights).clamp(max=1)
    else:
        raise ValueError(f"budgets must be 'even' or 'log-normal', got {budgets!r}.")
    return (density * kv_blocks).round().clamp(1, kv_blocks).int()


def random_lists(
    tokens: int,
    heads: int,
    sparsity: float,
    budgets: str,
    device: torch.device | str,
    kv_block: int = KV_BLOCK,
) -> tuple[Tensor, Tensor]:
    """Random blocks, ascending: kv_num_blocks [1, H, Mq] and kv_indices [1, H, Mq, W], int32."""
    q_blocks, kv_blocks = -(-tokens // Q_BLOCK), -(-tokens // KV_BLOCK)
    counts = head_counts(heads, kv_blocks, sparsity, budgets)
    width = int(counts.max())
    indices = torch.zeros(1, heads, q_blocks, width, dtype=torch.int32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for head, count in enumerate(counts.tolist()):  # one at a time: all of them would not fit at a million
        order = torch.rand(q_blocks, kv_blocks, generator=generator, device=device)
        chosen = order.topk(count, dim=1).indices.sort(dim=1).values
        indices[0, head, :, :count] = chosen.int()
    return counts.to(device)[None, :, None].expand(1, heads, q_blocks).contiguous(), indices


def selected_scores(counts: Tensor) -> int:
    """Query-key pairs in the lists, for tokens that fill their blocks."""
    return int(counts.sum(dtype=torch.int64)) * Q_BLOCK * KV_BLOCK


def median_ms(function: Callable[[], object], repeats: int) -> float:
    """Median time of a call on the current GPU in milliseconds, after two calls that are not counted."""
    times = []
    for run in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        if run >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def require_gpu() -> None:
    """Stop with one line where there is nothing to measure."""
    if not torch.cuda.is_available():
        sys.exit("this measures GPU kernels and PyTorch finds no CUDA GPU here; nothing was run.")
