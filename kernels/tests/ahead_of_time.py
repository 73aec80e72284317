"""Compile the kernels for GPUs that are not there and print what they need, one JSON object per line.

    python ahead_of_time.py '[["forward", 90, "bf16", 64, {"num_warps": 4, "num_stages": 3}], ...]'

compiles for blocks of 128 queries and 64 keys; the last entry is a `Tile`, or null for the default. No GPU
and no driver are used, only what comes with Triton. Must not run in the interpreter.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[1] / "torch-ext"))
from hess_attention import triton_backward, triton_forward, triton_fp8, triton_heads
from hess_attention.tuning import Tile, default_tile

KERNELS = {
    "forward": triton_forward._forward_kernel,
    "forward_fp8": triton_forward._forward_kernel,
    "backward_queries": triton_backward._queries_kernel,
    "backward_keys": triton_backward._keys_kernel,
    "ranges": triton_fp8._ranges_kernel,
    "round": triton_fp8._round_kernel,
    "norm": triton_heads._norm_kernel,
    "rotate": triton_heads._rotate_kernel,
}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BLOCK_ELEMENTS = dict.fromkeys(("ranges", "round"), triton_fp8._ELEMENTS)
BLOCK_ELEMENTS |= dict.fromkeys(("norm", "rotate"), triton_heads._ELEMENTS)
FLOAT32 = (
    *("lse_ptr", "delta_ptr", "scales", "cos_ptr", "sin_ptr"),
    *("scale_ptr", "centre_ptr", "total_ptr", "highest_ptr", "lowest_ptr"),
)
Q_BLOCK, KV_BLOCK = 128, 64


def constants(kernel: str, dim: int, tile: Tile) -> dict[str, object]:
    """What the launch passes as compile-time constants."""
    parts = 1 if kernel == "backward_keys" else tile.parts
    values = {
        "DIM": dim,
        "BLOCK_M": Q_BLOCK // parts,
        "BLOCK_N": KV_BLOCK,
        "PARTS": parts,
        "STEP": tile.step,
        "TMA": tile.tma,
        "FROZEN": tile.frozen,
        "REDO": False,
        "SCALED": kernel == "forward_fp8",
    }
    if kernel in BLOCK_ELEMENTS:
        values |= {"BLOCK": BLOCK_ELEMENTS[kernel] // dim}
    return {name: value for name, value in values.items() if name in KERNELS[kernel].arg_names}


def argument_type(kernel: str, name: str, dtype: str, dim: int, tile: Tile) -> str:
    """Type of a run-time argument, from its name."""
    if name in FLOAT32:
        return "*fp32"
    if name == "low_ptr" or (kernel == "forward_fp8" and name in ("q_ptr", "k_source", "special_k_source")):
        dtype = "fp8e4nv"
    if name.endswith("_source") and tile.tma:
        return f"tensordesc<{dtype}[1,{KV_BLOCK},{dim}]>"
    if name == "rows_ptr" or name in ("kv_num_blocks", "kv_indices", "begins", "counts"):
        return "*i32"
    if name.endswith(("_ptr", "_source")):
        return f"*{dtype}"
    return {"head_order": "*i64", "scale": "fp32", "eps": "fp32"}.get(name, "i32")


def resources(kernel: str, capability: int, dtype: str, dim: int, tile: Tile) -> dict[str, int]:
    """Registers per thread, spills (accesses to local memory in the code) and bytes of shared memory."""
    function, values = KERNELS[kernel], constants(kernel, dim, tile)
    signature = {
        name: "constexpr" if name in values else argument_type(kernel, name, dtype, dim, tile)
        for name in function.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=values, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=tile.launch_options())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        usage, code = tool("cuobjdump", "-res-usage", cubin.name), tool("nvdisasm", "-c", cubin.name)
    return {
        "registers": int(re.search(r"\bREG:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared": compiled.metadata.shared,
    }


def tool(name: str, *arguments: str) -> str:
    """Output of one of NVIDIA's tools in the Triton package."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for kernel, capability, dtype, dim, options in json.loads(sys.argv[1]):
        tile = default_tile(kernel, divmod(capability, 10), TYPES[dtype], dim, Q_BLOCK)
        tile = tile if options is None else Tile(**options)
        found = resources(kernel, capability, dtype, dim, tile)
        case = {"kernel": kernel, "capability": capability, "dtype": dtype, "dim": dim}
        print(json.dumps(case | {"tile": tile} | found), flush=True)
