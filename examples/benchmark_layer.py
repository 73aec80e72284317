"""What selection costs beside attention, and from which length on a sparse layer is faster; needs a CUDA GPU.

    python examples/benchmark_layer.py --tokens 131072 1036032 --views 8 12 16 24 32 50

First table, per length: milliseconds and memory of a layer's plan (which blocks to attend to), and of
attention over them. Second table, per number of views: a whole sparse layer beside PyTorch's dense attention.
16 heads, head dimension 64, bfloat16, log-normal head weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from hess_plugin.kernels.hess_attention import block_sparse_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hess_plugin import HeSSConfig
from hess_plugin.backbones import TokenLayout
from hess_plugin.processor import HeSSAttentionProcessor
from hess_plugin.sparsity import BlockPlan

HEADS, DIM = 16, 64
GRID = (28, 37)  # patches of a photo of 392 x 518 pixels
WEIGHTS = torch.randn(HEADS, generator=torch.Generator().manual_seed(0)).mul(1.5).exp().tolist()
RATIO = HeSSConfig(sparse_ratio=0.75, cdf_threshold=0.0)
SETTINGS = {
    "uniform 75 %": replace(RATIO, allocation="uniform"),
    "hess 75 %": RATIO,
    "hess 75 %, cdf 0.9": replace(RATIO, cdf_threshold=0.9),
}
LAYERS = {"75 %": RATIO, "50 %": replace(RATIO, sparse_ratio=0.5)}


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of one call on the GPU, and GB of memory on top of what was there."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end), (torch.cuda.max_memory_allocated() - before) / 1e9


def measured(function: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Median milliseconds and GB of calls after the first two; of the second alone if it takes a second."""
    timed(function)  # compiles
    results = [timed(function)]
    if results[0][0] < 1000:
        results = [timed(function) for _ in range(repeats)]
    return statistics.median(time for time, _ in results), results[-1][1]


def tokens_of(count: int, device: str) -> list[Tensor]:
    """q, k, v [1, H, count, D]; neighbours of q and k are alike, so that block means differ."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, HEADS, count, DIM)
    q, k, v = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    runs = (2, 1, HEADS, -(-count // 256), DIM)
    common = torch.randn(runs, generator=generator, device=device, dtype=torch.bfloat16)
    for x, mean in zip((q, k), common, strict=True):
        x += 0.7 * mean.repeat_interleave(256, dim=2)[:, :, :count]
    return [q, k, v]


def selection(count: int, name: str, config: HeSSConfig, device: str = "cuda") -> str:
    """One row of the first table."""
    q, k, v = tokens_of(count, device)

    def plan(then: Callable[..., object] = lambda *_: None) -> None:
        for heads, blocks in BlockPlan(q, k, WEIGHTS, config):
            then(q[:, heads], k[:, heads], v[:, heads], blocks.kv_num_blocks, blocks.kv_indices)
            del blocks

    planned, memory = measured(plan)
    together, _ = measured(lambda: plan(block_sparse_attention), 1)
    rows = BlockPlan(q, k, WEIGHTS, config).row_counts
    density = float(rows.double().mean()) * config.kv_block_size / count
    attention = together - planned
    rate = 4 * DIM * HEADS * count**2 * density / attention / 1e9
    return (
        f"{count:>8} {name:20} density {density:.3f}  plan {planned:8.3f} ms, {memory:5.2f} GB on top  "
        f"attention {attention:9.2f} ms, {rate:4.0f} TFLOP/s  share {planned / attention:6.1%}"
    )


def crossover(views: int, device: str = "cuda") -> str:
    """One row of the second table."""
    layout = TokenLayout(views, 5, GRID)
    q, k, v = tokens_of(layout.num_tokens, device)
    times = {}
    for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
        with sdpa_kernel(getattr(SDPBackend, name)):
            times[name], _ = measured(lambda: scaled_dot_product_attention(q, k, v))
    for name, config in LAYERS.items():
        processor = HeSSAttentionProcessor(WEIGHTS, config)
        times[name], _ = measured(lambda processor=processor: processor(q, k, v, layout))  # type: ignore[misc]
    cells = "  ".join(f"{name} {time:8.2f} ms" for name, time in times.items())
    return f"{views:>5} views {layout.num_tokens:>8} tokens  {cells}"


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, nargs="*", default=[131072])
    parser.add_argument("--views", type=int, nargs="*", default=[4, 8, 12, 16, 24, 32, 50, 100])
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("this measures GPU kernels and PyTorch finds no CUDA GPU here; nothing was run.")
    print(torch.cuda.get_device_name(), torch.__version__)
    with torch.inference_mode():
        for count in options.tokens:
            for name, config in SETTINGS.items():
                print(selection(count, name, config), flush=True)
        for views in options.views:
            print(crossover(views), flush=True)


if __name__ == "__main__":
    main()
