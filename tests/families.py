"""Helpers of the tests that run over the doubles of all families: build one, run it, see what it is asked."""

from __future__ import annotations

from typing import Any

import torch
from doubles import TINY_MODELS
from doubles_family import FAMILY_MODELS
from torch import Tensor, nn

from hess_plugin.backbones import TokenLayout, find_backbone

MODELS = TINY_MODELS | FAMILY_MODELS


def family(name: str) -> str:
    """Name of the backbone to which the double of this name belongs."""
    return name.removeprefix("native-").split("-")[0]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def images(views: int = 3, height: int = 12, width: int = 20, batch: int = 1) -> Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(1))


def layout_of(model: nn.Module) -> TokenLayout:
    """What the backbone says about the tokens when the model sees `images()`."""
    backbone, layouts = find_backbone(model), []
    handle = backbone.image_module(model).register_forward_pre_hook(
        lambda *call: layouts.append(backbone.token_layout(*call)), with_kwargs=True
    )
    backbone.predict(model, images())
    handle.remove()
    (layout,) = layouts
    return layout


def captured_calls(model: nn.Module) -> list[tuple[nn.Module, tuple, dict[str, Any], Tensor]]:
    """Every global attention's call in one forward: module, arguments, output."""
    calls: list[tuple[nn.Module, tuple, dict[str, Any], Tensor]] = []
    handles = [
        attn.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        for attn in find_backbone(model).global_attentions(model).values()
    ]
    find_backbone(model).predict(model, images())
    for handle in handles:
        handle.remove()
    return calls
