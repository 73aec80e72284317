"""The kernel package is imported from its source folder: these tests need nothing else of the project.

Without a GPU its kernels run in Triton's interpreter, which must be asked for before anything imports Triton.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "triton was imported before the interpreter was asked for"
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "torch-ext"))


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
