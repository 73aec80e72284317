"""A model to calibrate."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import tiny_native_vggt


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Folder of a tiny checkpoint with random weights."""
    tiny_native_vggt().save_pretrained(tmp_path / "model")
    return tmp_path / "model"
