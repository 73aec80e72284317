"""Compiled ahead of time for GPUs that are not there: no spills, and shared memory within their limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import hess_attention
import pytest

pytest.importorskip("triton")
SHARED_LIMIT = {80: 163, 90: 227, 100: 227}  # KiB that one program can have
CONFIGS = Path(hess_attention.__file__).parent / "configs"
TABLE = json.loads((CONFIGS / "nvidia_h100.json").read_text(encoding="utf-8"))
KERNELS = ("forward", "backward_queries", "backward_keys")

QUICK = [
    ["forward", 100, "bf16", 64, None],
    ["forward", 90, "bf16", 64, None],
    ["backward_queries", 90, "bf16", 64, TABLE["tiles"]["backward_queries"]["64"]],
    ["backward_keys", 90, "bf16", 64, TABLE["tiles"]["backward_keys"]["64"]],
    ["forward_fp8", 90, "bf16", 64, None],
    *([kernel, 90, "bf16", 64, {"num_warps": 8, "num_stages": 3}] for kernel in ("ranges", "round")),
    *(
        [kernel, capability, "bf16", 64, {"num_warps": 4, "num_stages": 3}]
        for kernel in ("norm", "rotate")
        for capability in SHARED_LIMIT
    ),
]
DEFAULTS = [
    [kernel, capability, dtype, dim, None]
    for kernel in KERNELS
    for capability in SHARED_LIMIT
    for dtype, dims in (("bf16", (16, 32, 64, 128)), ("fp16", (64,)))
    for dim in dims
]
TABLED = [
    [kernel, 90, "bf16", int(dim), options]
    for kernel, by_dim in TABLE["tiles"].items()
    for dim, options in by_dim.items()
]
FP8 = [
    ["forward_fp8", capability, dtype, dim, None]
    for capability in (90, 100)
    for dtype in ("bf16", "fp16")
    for dim in (32, 64, 128)
]
FP8 += [
    [kernel, 90, "bf16", dim, {"num_warps": 8, "num_stages": 3}]
    for kernel in ("ranges", "round")
    for dim in (32, 128)
]
# float32 is for checking: it spills a little elsewhere, where 16-bit types do not.
FLOAT32 = [[kernel, 90, "fp32", 64, None] for kernel in ("forward", "backward_queries")]


def compile_all(cases: list[list]) -> list[dict]:
    """In a process where Triton was not told to interpret."""
    script = Path(__file__).parent / "ahead_of_time.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, json.dumps(cases)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_fits(cases: list[list]) -> None:
    found = compile_all(cases)
    assert len(found) == len(cases)
    broken = [
        case for case in found if case["spills"] or case["shared"] > 1024 * SHARED_LIMIT[case["capability"]]
    ]
    assert not broken


def test_what_is_shipped_for_head_dimension_64() -> None:
    assert_fits(QUICK)


@pytest.mark.slow(reason="minutes of compilation")
@pytest.mark.parametrize("cases", [DEFAULTS, FP8, FLOAT32], ids=["defaults", "fp8", "float32"])
def test_everything_that_is_shipped(cases: list[list]) -> None:
    assert_fits(cases)


@pytest.mark.skipif(
    not version("triton").startswith(TABLE["triton"] + "."), reason="tables are used with one Triton alone"
)
def test_tables() -> None:
    """With that Triton in a folder: `PYTHONPATH=folder pytest kernels/tests/test_compile.py`."""
    assert_fits(TABLED)
