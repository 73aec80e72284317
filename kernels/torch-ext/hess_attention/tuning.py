"""How the kernels are launched: a table per GPU in `configs/`, and a default for GPUs without one.

Every entry computes the same result; they differ in speed only. `kernels/benchmarks/tune.py` measures them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

CONFIGS = Path(__file__).parent / "configs"
HAS_TRITON = importlib.util.find_spec("triton") is not None
_DENSE_BELOW = 20000  # of an H100; launches take as long elsewhere, and slower GPUs gain earlier


class Tile(NamedTuple):
    """Launch options of one kernel, and its variant."""

    num_warps: int
    num_stages: int  # blocks in flight from memory, the index list counted as one
    maxnreg: int | None = None  # most registers per thread; fewer let more programs run at a time
    parts: int = 1  # programs that share a block of queries; not for the gradient of the keys
    tma: bool = False  # load keys and values by the copy engine; sm_90 and later
    frozen: bool = False  # the maximum of a row's first block serves to its end, see `_attend`
    step: int = 64  # queries at a time in the gradient of the keys

    def launch_options(self) -> dict[str, int]:
        """Keyword arguments of a Triton launch."""
        # Fusion of multiply and add is to stay on when Triton 3.10 turns it off by default.
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}
        return options if self.maxnreg is None else {**options, "maxnreg": self.maxnreg}


def choose_tile(
    kernel: str, device: torch.device, dtype: torch.dtype, dim: int, q_block_size: int, kv_block_size: int
) -> Tile:
    """Launch options for one call.

    Tables hold 16-bit types at blocks of 128 queries and 64 keys, for one version of Triton: as another one
    compiles them they may spill registers. All else gets the default, and so does a GPU without a table,
    after one warning.

    Args:
        kernel: "forward", "forward_fp8" (of queries and keys in fp8), "backward_queries" or "backward_keys".
        device: Where the tensors are; "cpu" stands for Triton's interpreter.
        dtype: Type of q, k and v.
        dim: Head dimension.
        q_block_size: Queries per block.
        kv_block_size: Keys per block.
    """
    if device.type != "cuda":
        return Tile(num_warps=4, num_stages=2)
    tile = default_tile(kernel, torch.cuda.get_device_capability(device), dtype, dim, q_block_size)
    if dtype != torch.float32 and (q_block_size, kv_block_size) == (128, 64):
        table = gpu_table(torch.cuda.get_device_name(device))
        if triton_version().startswith(table.get("triton", "none") + "."):
            entry = table["tiles"].get(kernel, {}).get(str(dim))
            tile = tile if entry is None else Tile(**entry)
    # A probability may outgrow a frozen maximum by 2^15 in float16, and by 2^100 in bfloat16.
    return tile._replace(frozen=tile.frozen and dtype == torch.bfloat16)


def dense_below_tokens(device: torch.device) -> int:
    """Tokens from which sparse attention is faster than dense: from the GPU's table, a guess without one.

    On a CPU 0, since there the work that is left out decides. On a GPU that the kernels cannot run on it is
    out of reach: gathering keys in PyTorch gains nothing over its fused dense attention.
    """
    if device.type != "cuda":
        return 0
    if not compiles_for(device):
        return sys.maxsize
    return gpu_table(torch.cuda.get_device_name(device)).get("dense_below_tokens", _DENSE_BELOW)


def compiles_for(device: torch.device) -> bool:
    """Whether this is a GPU that Triton compiles the kernels for: NVIDIA's since sm_80."""
    return (
        HAS_TRITON
        and device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def default_tile(
    kernel: str, capability: tuple[int, int], dtype: torch.dtype, dim: int, q_block_size: int
) -> Tile:
    """A setting that fits the registers and the shared memory of every GPU since sm_80; not the fastest.

    One call fits neither sm_80 nor sm_90: gradients of float32 keys of 128 channels in blocks of 128.

    Arguments as in `choose_tile`; `capability` is that of the GPU, (9, 0) for sm_90.
    """
    wide, single, hopper = dim > 64, dtype == torch.float32, capability >= (9, 0)
    if kernel == "backward_keys":
        # As Triton 3.6 compiles products of three TF32 for sm_90, 8 warps and a step of 16 read shared memory
        # out of bounds, or give wrong numbers. 4 warps are right, and so is a step of 32, which fits sm_80.
        warps = 4 if single and q_block_size == 16 else 8 if wide or single else 4
        return Tile(warps, num_stages=2, step=64 if wide and not single else 32)
    forward = kernel in ("forward", "forward_fp8")
    rows = 16 if single else 32 if wide and not hopper and kernel == "backward_queries" else 128
    return Tile(
        num_warps=8 if q_block_size == 128 else 4,
        num_stages=3 if forward and not (wide or single) else 2,
        parts=max(1, q_block_size // rows),
        tma=forward and hopper,
        frozen=forward and hopper and dtype == torch.bfloat16,
    )


@functools.cache
def triton_version() -> str:
    """Of the module, since the packages that bring it have several names."""
    import triton

    return triton.__version__


@functools.cache
def gpu_table(gpu: str) -> dict[str, Any]:
    """The table whose `gpu` begins this GPU's name; an empty one, with one warning, if there is none."""
    path = table_path(gpu)
    if path is not None:
        return json.loads(path.read_text(encoding="utf-8"))
    warnings.warn(
        f"hess_attention has no tuned launch options for {gpu!r} and uses a default; "
        "kernels/benchmarks/tune.py finds and writes them.",
        stacklevel=2,
    )
    return {}


def table_path(gpu: str, folder: Path = CONFIGS) -> Path | None:
    """The file of the table whose `gpu` begins this GPU's name; None if there is none."""
    for path in sorted(folder.glob("*.json")):
        if gpu.startswith(json.loads(path.read_text(encoding="utf-8"))["gpu"]):
            return path
    return None
