"""Clouds with a shape that tells every turn, for registration and for search."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from hess_plugin.geometry.similarity import Similarity


def room(count: int, seed: int = 0) -> Tensor:
    """Points [count, 3] float64 on a floor, two walls, a ball and a box of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, count, dtype=torch.float64, generator=generator)
    flat = torch.zeros_like(u)
    direction = torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=generator), dim=-1
    )
    box = 0.3 * direction / direction.abs().amax(1, keepdim=True)
    parts = torch.stack(
        [
            torch.stack([3 * u, 2 * v, flat], -1),
            torch.stack([3 * u, flat, v], -1),
            torch.stack([flat, 2 * u, 1.4 * v], -1),
            0.4 * direction + torch.tensor([0.9, 1.2, 0.4]).double(),
            box + torch.tensor([2.2, 0.8, 0.3]).double(),
        ]
    )
    weights = torch.tensor([6.0, 3, 3, 2, 2])
    kind = torch.multinomial(weights, count, replacement=True, generator=generator)
    return parts[kind, torch.arange(count)]


def similarity(scale: float = 1.7, seed: int = 0) -> Similarity:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    shift = 5 * torch.randn(3, dtype=torch.float64, generator=generator)
    return Similarity(torch.tensor(scale).double(), q * torch.linalg.det(q), shift)


def outputs_by_threads(code: str) -> list[str]:
    """What Python code that may import this module prints in processes of one and of two threads."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            # passive: threads that wait for each other actively take minutes on a busy machine
            env=os.environ
            | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
            | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        for threads in ("1", "2")
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return outputs
