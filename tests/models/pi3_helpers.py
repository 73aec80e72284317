"""What the tests of π³ share beside the fixtures in conftest.py."""

from __future__ import annotations

import torch
from golden_weights import fill_weights

from hess_plugin.models.pi3 import Pi3Model


def fill_golden_weights(model: Pi3Model) -> None:
    """The rule of the golden files, with the smaller dense heads of their π³ variants."""
    fill_weights(model)
    with torch.no_grad():
        for head in (model.point_head, model.conf_head):
            for parameter in head.parameters():
                parameter.mul_(0.1)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
