"""The same bits for the same scene, whichever process measures it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Settings under which a scene's traces do not depend on who computes them; then as before.

    One thread on the CPU: sums are split over threads, so their number shows in the last bits, and launchers
    of several processes set another number than a single process has. More processes use more cores.

    On a GPU: deterministic algorithms (torch raises RuntimeError where an operation has none), no choice of
    algorithm by timing, and float32 products in float32. TF32, which cuDNN uses by default, keeps 10 bits of
    each factor, and which GPUs have it differs: scores would depend on the machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if device.type == "cuda":
            with _reproducible_cuda():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _reproducible_cuda() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision, workspace = torch.get_float32_matmul_precision(), os.environ.get(_CUBLAS_WORKSPACE)
    os.environ[_CUBLAS_WORKSPACE] = workspace or ":4096:8"  # cuBLAS is deterministic with a fixed workspace
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if workspace is None:
            del os.environ[_CUBLAS_WORKSPACE]
