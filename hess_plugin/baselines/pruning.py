"""Head pruning of a loaded model, by either rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..backbones import find_backbone
from ..config import Checked
from ..gates import HeadGates
from ..patch import HeSSHandle, apply_processors, check_fit
from . import kwon, michel
from .head_masks import HeadMaskProcessor

RULES = {"michel": michel.kept_heads, "kwon": kwon.kept_heads}


@dataclass(frozen=True)
class HeadPruningConfig(Checked):
    """Which heads of the global attentions are masked. The density is the share of heads that are kept."""

    rule: Literal["michel", "kwon"] = "michel"
    kept_share: float = 0.5  # of all L * H heads; the nearest whole number of them
    camera_weight: float | None = None  # λ of the loss; None takes the value recommended with the gates
    dense_layers: tuple[int, ...] = ()  # indices of global layers whose heads are all kept, and counted

    def __post_init__(self) -> None:
        self._one_of("rule", tuple(RULES))
        self._in_unit_interval("kept_share", "camera_weight")
        self._layer_indices("dense_layers")


def kept_heads(gates: HeadGates, config: HeadPruningConfig) -> Tensor:
    """Mask [L, H] bool of the heads that stay."""
    num_kept = round(config.kept_share * gates.info.num_layers * gates.info.num_heads)
    return RULES[config.rule](gates.of_loss(config.camera_weight), num_kept, config.dense_layers)


def prune_heads(model: nn.Module, gates: HeadGates, config: HeadPruningConfig) -> HeSSHandle:
    """Mask heads of a loaded model, in place; `handle.remove()` gives the model back.

    Raises:
        ValueError: gates of another family or size than the model, a layer index out of range, or a model
            that `apply_processors` refuses.
        RuntimeError: the model already has sparse attention.
    """
    check_fit(model, find_backbone(model), gates.info)
    mask = kept_heads(gates, config).tolist()
    return apply_processors(
        model, {layer: HeadMaskProcessor(kept) for layer, kept in enumerate(mask)}, config
    )
