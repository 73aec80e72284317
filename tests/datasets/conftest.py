"""Miniature DTU trees, written once, and copies of them that may be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dtu_tree import write_trees


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_trees`; nothing may be changed in them."""
    return write_trees(tmp_path_factory.mktemp("dtu"))


@pytest.fixture
def pointmap(trees: Path, tmp_path: Path) -> Path:
    """A tree to damage; it holds scan 1."""
    shutil.copytree(trees / "pointmap" / "scan1", tmp_path / "pointmap" / "scan1")
    return tmp_path / "pointmap"


@pytest.fixture
def training(trees: Path, tmp_path: Path) -> Path:
    """A tree to damage; it holds scan 2."""
    return Path(shutil.copytree(trees / "training", tmp_path / "training"))
