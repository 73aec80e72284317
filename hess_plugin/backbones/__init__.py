"""Model families: one file each, listed in `BACKBONES`."""

from __future__ import annotations

from torch import nn

from .base import Backbone, Pieces, Reconstruction, TokenLayout
from .depth_anything3 import DepthAnything3Backbone
from .map_anything import MapAnythingBackbone
from .pi3 import Pi3Backbone
from .pi3x import Pi3XBackbone
from .streamvggt import StreamVggtBackbone
from .vggt import VggtBackbone
from .vggt_omega import VggtOmegaBackbone

__all__ = ["BACKBONES", "Backbone", "Pieces", "Reconstruction", "TokenLayout", "find_backbone"]

# No model matches two of them, so their order means nothing.
BACKBONES: tuple[Backbone, ...] = (
    VggtBackbone(),
    Pi3Backbone(),
    Pi3XBackbone(),
    VggtOmegaBackbone(),
    DepthAnything3Backbone(),
    MapAnythingBackbone(),
    StreamVggtBackbone(),
)

_HOW_TO_ADD = """\
To add a family:
  1. write hess_plugin/backbones/<family>.py with one subclass of Backbone;
  2. recognise the family in `matches` by its module tree, not by the module path of its class;
  3. give its global attentions, and the token layout of a call, read from the model and its inputs;
  4. compute q, k, v in `project_qkv` as its attention does, and its outputs' convention in `reconstruct`;
  5. list it in BACKBONES (hess_plugin/backbones/__init__.py);
  6. add a tiny model with the same module tree to the tests; they run over every family (CONTRIBUTING.md)."""


def find_backbone(model: nn.Module) -> Backbone:
    """The family of a model.

    Raises:
        ValueError: no known family has this module tree; lists the known ones and the steps to add one.
    """
    for backbone in BACKBONES:
        if backbone.matches(model):
            return backbone
    known = ", ".join(backbone.name for backbone in BACKBONES)
    raise ValueError(f"no backbone matches `{type(model).__name__}`; known: {known}.\n{_HOW_TO_ADD}")
