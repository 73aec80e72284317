"""Find fast launch options of the kernels on this GPU, and write them to `configs/`; needs a CUDA GPU.

    python kernels/benchmarks/tune.py --dim 64 --write

1. Compile every setting and compare what it computes with the definition, in processes side by side.
2. Time those that are right, one after the other, at each sparsity.
3. The best has the highest sum of rates. One that spills registers may still be it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from block_lists import KV_BLOCK, Q_BLOCK, median_ms, random_lists, require_gpu, selected_scores
from hess_attention import dense_mask_attention
from hess_attention.tuning import CONFIGS, Tile, choose_tile, table_path, triton_version
from torch import Tensor

KERNELS = ("forward", "backward_queries", "backward_keys")
# Registers per thread that let two to five programs run at a time on a multiprocessor.
CAPS = {4: (None, 96, 128, 160, 168), 8: (None, 80, 96, 128)}
OPERATIONS = {"forward": 4, "backward_queries": 10, "backward_keys": 10}  # per score and channel


def candidates(kernel: str, tma: bool) -> Iterator[Tile]:
    """All settings worth a try; `tma` if the GPU has the copy engine (sm_90 and later)."""
    options: dict[str, tuple] = {"num_stages": (2, 3)}
    if kernel == "forward":
        options |= {"parts": (1, 2), "tma": (False, True) if tma else (False,), "frozen": (False, True)}
    elif kernel == "backward_queries":
        options |= {"parts": (1, 2)}
    else:
        options |= {"step": (32, 64)}
    for warps, caps in CAPS.items():
        for cap, *values in itertools.product(caps, *options.values()):
            yield Tile(num_warps=warps, maxnreg=cap, **dict(zip(options, values, strict=True)))


class Problem(NamedTuple):
    """One call, with the gradient of its output and, for the backward kernels, its results."""

    call: tuple[Tensor | None, ...]  # q, k, v, counts, indices, special_k, special_v
    grad: Tensor
    tiles: Mapping[str, Tile]  # of the kernels that are not being tuned
    results: tuple[Tensor, Tensor]  # of the forward pass


def make_problem(
    tokens: int, heads: int, dim: int, sparsity: float, num_special: int, device: str, dtype: torch.dtype
) -> Problem:
    """Normal q, k, v and gradient, random lists."""
    from hess_attention import triton_forward

    generator = torch.Generator(device).manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, device=device, dtype=dtype)
    q, k, v, grad = normal(4, 1, heads, tokens, dim)
    special = normal(2, 1, heads, num_special, dim) if num_special else (None, None)
    call = (q, k, v, *random_lists(tokens, heads, sparsity, "even", device), *special)
    tiles = {name: choose_tile(name, q.device, dtype, dim, Q_BLOCK, KV_BLOCK) for name in KERNELS}
    return Problem(call, grad, tiles, triton_forward.forward(*call, Q_BLOCK, KV_BLOCK, tiles["forward"]))


def launch(kernel: str, tile: Tile, problem: Problem) -> list[Tensor]:
    """The output; or the gradients, of which the kernel computes some and the other, as always, the rest."""
    from hess_attention import triton_backward, triton_forward

    if kernel == "forward":
        return [triton_forward.forward(*problem.call, Q_BLOCK, KV_BLOCK, tile)[0]]
    tiles = {**problem.tiles, kernel: tile}
    both = tiles["backward_queries"], tiles["backward_keys"]
    return triton_backward.backward(problem.grad, *problem.call, *problem.results, Q_BLOCK, KV_BLOCK, *both)


def defined(kernel: str, problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """What `launch` is to give, computed in a dtype through the definition."""
    q, k, v, counts, indices, *special = problem.call
    given = [q, k, v, *(x for x in special if x is not None)]
    leaves = [x.to(dtype).detach().requires_grad_() for x in given if x is not None]
    named = dict(zip(("special_k", "special_v"), leaves[3:], strict=False))
    sizes = {"q_block_size": Q_BLOCK, "kv_block_size": KV_BLOCK}
    out = dense_mask_attention(*leaves[:3], counts, indices, **named, **sizes)
    return [out] if kernel == "forward" else list(torch.autograd.grad(out, leaves, problem.grad.to(dtype)))


def refusal(
    kernel: str,
    dim: int,
    tile: Tile,
    *,
    tokens: int = 1111,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> str | None:
    """Why a setting cannot be used: it does not launch, or errs more than three times the definition."""
    problem = make_problem(tokens, 2, dim, 0.5, 17, device, dtype)
    try:
        found = launch(kernel, tile, problem)
    except Exception as error:  # too much shared memory, or what this Triton cannot compile
        return f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    truth, low = defined(kernel, problem, torch.float64), defined(kernel, problem, dtype)
    rounding = torch.finfo(dtype).eps * max(x.detach().abs().max().item() for x in truth)
    for own, coarse, true in zip(found, low, truth, strict=True):
        error, allowed = (own - true).abs().max(), 3 * (coarse - true).abs().max() + rounding
        if not error <= allowed:
            return f"its error is {error:.2g}, {allowed:.2g} are allowed"
    return None


def refusals(kernel: str, dim: int, tiles: list[Tile], workers: int) -> list[str | None]:
    """`refusal` of all, each in a process of its own, so that a faulty kernel ends only that."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        return list(pool.map(functools.partial(refusal, kernel, dim), tiles))


def rates(kernel: str, tile: Tile, problems: Iterable[Problem], repeats: int) -> list[float]:
    """Executed TFLOP/s at each sparsity; of the backward kernels, those of the whole backward pass."""
    found = []
    for problem in problems:
        _, _, _, counts, *_ = problem.call
        assert counts is not None
        scores = selected_scores(counts) * problem.grad.shape[3] * OPERATIONS[kernel]
        found.append(scores / median_ms(functools.partial(launch, kernel, tile, problem), repeats) / 1e9)
    return found


def write(gpu: str, kernel: str, dim: int, tile: Tile, note: str, folder: Path = CONFIGS) -> Path:
    """Put one entry into the table of a GPU; only options that differ from the defaults are written."""
    path = table_path(gpu, folder)
    compiler = ".".join(triton_version().split(".")[:2])
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
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1), help="that compile")
    parser.add_argument("--write", action="store_true", help="put the result into the table of this GPU")
    options = parser.parse_args(arguments)
    if options.tokens % Q_BLOCK:
        parser.error(f"--tokens must be a multiple of {Q_BLOCK}, got {options.tokens}.")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Print every rate that is measured and the best of each kernel."""
    options = parse(arguments)
    require_gpu()
    tma = torch.cuda.get_device_capability() >= (9, 0)
    for kernel in options.kernel:
        tiles, good = list(candidates(kernel, tma)), []
        for tile, why in zip(tiles, refusals(kernel, options.dim, tiles, options.workers), strict=True):
            print(f"refused: {tile} {why}", flush=True) if why else good.append(tile)
        shape = (options.tokens, options.heads, options.dim)
        problems = [make_problem(*shape, s, 0, "cuda", torch.bfloat16) for s in options.sparsity]
        measured: dict[Tile, list[float]] = {}
        for tile in good:
            measured[tile] = rates(kernel, tile, problems, options.repeats)
            print(" ".join(f"{rate:5.0f}" for rate in measured[tile]), tile, flush=True)
        best = max(measured, key=lambda tile: sum(measured[tile]))
        text = ", ".join(f"{rate:.0f}" for rate in measured[best])
        print(f"best for {kernel}: {text} TFLOP/s {best}")
        if options.write:
            note = (
                f"Measured by tune.py at {options.tokens} tokens, {options.heads} heads and sparsities of "
                f"{options.sparsity}, bfloat16, torch {torch.__version__}: {text} executed TFLOP/s."
            )
            print(f"wrote {write(torch.cuda.get_device_name(), kernel, options.dim, best, note)}")


if __name__ == "__main__":
    main()
