from __future__ import annotations

from pathlib import Path

import pytest
from calibrated_model import save_calibrated_model
from sweeping import SYNTHETIC, sweep

from hess_plugin.sweep.records import SweepFolder


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calibrated_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="package")
def swept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return sweep(model, tmp_path_factory.mktemp("swept") / "out", *SYNTHETIC)
