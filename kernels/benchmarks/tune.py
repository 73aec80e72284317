"""Find fast launch options of the kernels on this GPU, and write them to `configs/`; needs a CUDA GPU.

    python kernels/benchmarks/tune.py --dim 64 --write

Starts from the options in use and changes one at a time as long as that helps. A setting that spills
registers may still be the fastest, so nothing is ruled out but what does not launch.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from block_lists import KV_BLOCK, Q_BLOCK, median_ms, random_lists, require_gpu, selected_scores
from hess_attention.tuning import CONFIGS, Tile, choose_tile, table_path

KERNELS = ("forward", "backward_queries", "backward_keys")
# Registers per thread that let two to five programs run at a time on a multiprocessor.
CAPS = {4: (None, 96, 128, 160, 168), 8: (None, 80, 96, 128)}


def neighbours(kernel: str, tile: Tile, tma: bool) -> list[Tile]:
    """Tiles that differ from one in one option; `tma` if the GPU has the copy engine (sm_90 and later)."""
    choices = {
        "maxnreg": CAPS[tile.num_warps],
        "num_stages": (2, 3, 4),
        "parts": (1, 2),
        "tma": (False, True) if tma else (False,),
        "frozen": (False, True),
        "step": (32, 64),
    }
    forward = ("parts", "tma", "frozen")
    variants = {"forward": forward, "backward_queries": ("parts",)}
    fields = ("maxnreg", "num_stages", *variants.get(kernel, ("step",)))
    found = [tile._replace(num_warps=warps, maxnreg=None) for warps in CAPS if warps != tile.num_warps]
    return found + [
        tile._replace(**{field: value})
        for field in fields
        for value in choices[field]
        if value != getattr(tile, field)
    ]


def descend(
    start: Tile, neighbours_of: Callable[[Tile], list[Tile]], time_of: Callable[[Tile], float | None]
) -> tuple[Tile, float]:
    """The tile that no neighbour beats, and its time; None is the time of one that does not launch.

    Raises:
        ValueError: if `start` does not launch.
    """
    times = {start: time_of(start)}
    best, best_time = start, times[start]
    if best_time is None:
        raise ValueError(f"{start} does not launch on this GPU; begin with another one.")
    improved = True
    while improved:
        improved = False
        for tile in neighbours_of(best):
            if tile not in times:
                times[tile] = time_of(tile)
            found = times[tile]
            if found is not None and found < best_time:
                best, best_time, improved = tile, found, True
    return best, best_time


def timer(kernel: str, options: argparse.Namespace) -> tuple[Callable[[Tile], float | None], int]:
    """A function that times one tile in milliseconds, and the number of scores it computes."""
    from hess_attention import triton_backward, triton_forward

    shape = (4, 1, options.heads, options.tokens, options.dim)
    q, k, v, grad = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    lists = random_lists(options.tokens, options.heads, options.sparsity, "even", "cuda")
    call, blocks = (q, k, v, *lists, None, None), (Q_BLOCK, KV_BLOCK)
    used = {name: current(name, options.dim) for name in KERNELS}
    out, lse = triton_forward.forward(*call, *blocks, used["forward"])

    def run(tile: Tile) -> object:
        if kernel == "forward":
            return triton_forward.forward(*call, *blocks, tile)
        tiles = used | {kernel: tile}  # the other of the two runs too, always with the same options
        both = tiles["backward_queries"], tiles["backward_keys"]
        return triton_backward.backward(grad, *call, out, lse, *blocks, *both)

    def time(tile: Tile) -> float | None:
        try:
            found = median_ms(lambda: run(tile), options.repeats)
        except Exception as error:  # too much shared memory, or a variant that this Triton cannot compile
            print(f"{'-':>9}    {tile} {type(error).__name__}", flush=True)
            return None
        print(f"{found:9.3f} ms {tile}", flush=True)
        return found

    return time, selected_scores(lists[0])


def current(kernel: str, dim: int) -> Tile:
    """The options in use on this GPU."""
    return choose_tile(kernel, torch.device("cuda"), torch.bfloat16, dim, Q_BLOCK, KV_BLOCK)


def write(gpu: str, kernel: str, dim: int, tile: Tile, note: str, folder: Path = CONFIGS) -> Path:
    """Put one entry into the table of a GPU; only options that differ from the defaults are written."""
    path = table_path(gpu, folder)
    compiler = ".".join(version("triton").split(".")[:2])
    table: dict = {"gpu": gpu, "triton": compiler, "notes": {}, "tiles": {}}
    if path is None:
        path = folder / (re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_") + ".json")
    else:
        found = json.loads(path.read_text(encoding="utf-8"))
        table = found if found["triton"] == compiler else table | {"gpu": found["gpu"]}
    defaults = Tile._field_defaults
    entry = {name: value for name, value in tile._asdict().items() if value != defaults.get(name, ...)}
    table["notes"][kernel] = note
    table["tiles"].setdefault(kernel, {})[str(dim)] = entry
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return path


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find fast launch options of the kernels on this GPU.")
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--dim", type=int, choices=(16, 32, 64, 128), default=64)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--sparsity", type=float, default=0.75)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the result into the table of this GPU")
    options = parser.parse_args(arguments)
    if options.tokens % Q_BLOCK:
        parser.error(f"--tokens must be a multiple of {Q_BLOCK}, got {options.tokens}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Print every time that is measured and the best of each kernel."""
    options = parse(arguments)
    require_gpu()
    tma = torch.cuda.get_device_capability() >= (9, 0)
    for kernel in options.kernel:
        time, scores = timer(kernel, options)
        start = current(kernel, options.dim)
        tile, found = descend(start, functools.partial(neighbours, kernel, tma=tma), time)
        rate = f", {4 * options.dim * scores / found / 1e9:.0f} TFLOP/s" if kernel == "forward" else ""
        print(f"best for {kernel}: {found:.3f} ms{rate} {tile}")
        if options.write:
            note = f"Measured by tune.py at {options.tokens} tokens, {options.sparsity:.0%} sparsity."
            print(f"wrote {write(torch.cuda.get_device_name(), kernel, options.dim, tile, note)}")


if __name__ == "__main__":
    main()
