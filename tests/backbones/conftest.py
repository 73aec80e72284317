"""Every double in turn, built once per test file."""

from __future__ import annotations

import pytest
from families import MODELS, build
from torch import nn


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> nn.Module:
    return build(name)
