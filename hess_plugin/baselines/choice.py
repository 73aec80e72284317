"""All baselines as one choice: from a name and settings to a model that attends that way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from ..backbones import find_backbone
from ..errors import input_errors
from ..gates import HeadGates
from ..patch import HeSSHandle, check_fit
from .pruning import HeadPruningConfig, prune_heads
from .token_merging import TokenMergingConfig, merge_tokens

Baseline = HeadPruningConfig | TokenMergingConfig
BaselineName = Literal["michel", "kwon", "merging"]


def baseline_named(name: str, settings: Mapping[str, Any]) -> Baseline:
    """The settings of a baseline; of pruning, whose rule is the name, all but that.

    Raises:
        ValueError: no such baseline or setting, or a value that is impossible.
    """
    if name not in get_args(BaselineName):
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(get_args(BaselineName))}.")
    if name == "merging":
        return TokenMergingConfig.from_dict(dict(settings))
    if "rule" in settings:
        raise ValueError(f"the rule is {name}, as the baseline is named; leave rule={settings['rule']} out.")
    return HeadPruningConfig.from_dict({"rule": name, **settings})


def describe_baseline(config: Baseline, gates: HeadGates | None) -> dict[str, Any]:
    """Its name as `method`, and all settings, as JSON values; of pruning the λ that None stands for."""
    values = asdict(config) | {"dense_layers": list(config.dense_layers)}
    if isinstance(config, TokenMergingConfig):
        return {"method": "merging", **values}
    if config.camera_weight is None and gates is not None:
        values["camera_weight"] = gates.info.camera_weight
    return {"method": values.pop("rule"), **values}


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


def apply_baseline(model: nn.Module, config: Baseline, gates: HeadGates | None) -> HeSSHandle:
    """Put it into a model, in place; `handle.remove()` gives the model back.

    Raises:
        ValueError: pruning without gates, or what `prune_heads` and `merge_tokens` refuse.
        RuntimeError: the model already has sparse attention.
    """
    if isinstance(config, TokenMergingConfig):
        return merge_tokens(model, config)
    if gates is None:
        raise ValueError(
            f"head pruning ({config.rule}) needs gates, and there are none beside the scores; measure them "
            "with hess calibrate --gates, and name their folder by --gates."
        )
    return prune_heads(model, gates, config)
