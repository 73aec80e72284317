"""The baselines of `hess_plugin.baselines` as methods of a sweep: their settings follow from a density."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ..backbones import find_backbone
from ..baselines.pruning import HeadPruningConfig, prune_heads
from ..baselines.token_merging import TokenMergingConfig, merge_tokens
from ..config import HeSSConfig
from ..errors import input_errors
from ..gates import HeadGates
from ..patch import HeSSHandle, check_fit
from .presets import Setting

Baseline = HeadPruningConfig | TokenMergingConfig


def read_gates(folder: Path | None, beside: Path | None, model: nn.Module) -> HeadGates | None:
    """The gates of a folder, or else those beside the scores; None without any.

    Args:
        folder: of `hess calibrate --gates`.
        beside: where the scores lie, if in a folder.
        model: that they must fit.

    Raises:
        InputError: the folder has none, or they are damaged or of another model.
    """
    gates = HeadGates.load(folder) if folder else HeadGates.beside(beside) if beside else None
    if gates is None:
        return None
    with input_errors(ValueError):
        check_fit(model, find_backbone(model), gates.info)
    # Whether they fit the weights is known now; hashing these again for each setting is a waste.
    return HeadGates(gates.gradients, replace(gates.info, weights_sha256=None))


def baseline_config(setting: Setting, base: HeSSConfig, num_layers: int, target: float | None) -> Baseline:
    """The setting of a baseline that does the share `target` of the attention work of all layers."""
    assert target is not None  # the method that sets it is measured first
    target = round(target, 12)
    rule = setting.method.baseline
    if rule == "michel" or rule == "kwon":
        return HeadPruningConfig(rule, target, dense_layers=base.dense_layers)
    num_dense = len(set(base.dense_layers))
    density = (target * num_layers - num_dense) / max(num_layers - num_dense, 1)
    return TokenMergingConfig.at_density(
        min(max(density, 0.0), 1.0),
        dense_layers=base.dense_layers,
        dense_below_tokens=base.dense_below_tokens,
    )


def apply_baseline(model: nn.Module, config: Baseline, gates: HeadGates | None) -> HeSSHandle:
    """Put it into a model."""
    if isinstance(config, TokenMergingConfig):
        return merge_tokens(model, config)
    assert gates is not None  # methods that lack them were left out
    return prune_heads(model, gates, config)
