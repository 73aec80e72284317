"""The examples as modules, at toy size and on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("train_tiny_vggt", "tiny_vggt_recipe", "scene_looks", "solid_texture", "muon")
NAMES += ("benchmark_calibration", "benchmark_layer", "bfloat16_error", "profile_training")
NAMES += ("compare_allocations", "examine_photos", "rooms_for_cameras")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some gradients on a GPU differ from run to run in their last bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in NAMES:
            sys.modules.pop(name, None)
