"""The baselines of `hess_plugin.baselines` as methods of a sweep: their settings follow from a density."""

from __future__ import annotations

from ..baselines.choice import Baseline
from ..baselines.pruning import HeadPruningConfig
from ..baselines.token_merging import TokenMergingConfig
from ..config import HeSSConfig
from .presets import Setting


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
