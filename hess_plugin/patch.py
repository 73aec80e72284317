"""Put sparse global attention into a loaded model, and take it out again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .attention import AttentionProcessor, HeSSAttention, LayoutRecorder
from .backbones import Backbone, find_backbone
from .config import HeSSConfig
from .handle import HeSSHandle, HeSSStats, Replacement
from .processor import HeSSAttentionProcessor
from .scores import HeadScores, ScoresInfo

__all__ = ["HeSSHandle", "HeSSStats", "apply_hess", "apply_processors", "check_fit"]


def apply_hess(model: nn.Module, scores: HeadScores | None, config: HeSSConfig) -> HeSSHandle:
    """Make the global attention of a loaded model sparse, in place; the handle is also `model.hess`.

    No state-dict key changes; weights, hooks and other models are not touched.

    Args:
        model: of a known family, see `hess_plugin.backbones`.
        scores: that fit the model; None is allowed for `allocation="uniform"`.
        config: its field `scores` is not read here.

    Raises:
        ValueError: unknown family or one that runs dense only, scores that do not fit or are missing, a layer
            index out of range, or an attention whose forward somebody else has replaced.
        RuntimeError: the model already has sparse attention.
        TypeError: scores of another type.
    """
    backbone, attentions = _replaceable(model, config.dense_layers, "dense_layers")
    _check_scores(scores, config)
    weights = _head_weights(model, backbone, scores, config)
    processors = {
        layer: HeSSAttentionProcessor(None if weights is None else weights[layer], config)
        for layer in range(len(attentions))
        if layer not in config.dense_layers
    }
    return _install(model, backbone, attentions, processors, scores, config)


def apply_processors(
    model: nn.Module, processors: Mapping[int, AttentionProcessor], config: Any = None
) -> HeSSHandle:
    """Let the global layers of a loaded model attend in another way, in place, as `apply_hess` does.

    Args:
        model: of a known family.
        processors: by index of the global layer; layers without one stay as they are.
        config: the settings behind them, for `HeSSHandle.config`; not read here.

    Raises:
        ValueError: unknown family or one that runs dense only, a layer index out of range, or an attention
            whose forward somebody else has replaced.
        RuntimeError: the model already has sparse attention.
    """
    return _install(model, *_replaceable(model, tuple(processors), "processors"), processors, None, config)


def _install(
    model: nn.Module,
    backbone: Backbone,
    attentions: dict[str, nn.Module],
    processors: Mapping[int, AttentionProcessor],
    scores: HeadScores | None,
    config: Any,
) -> HeSSHandle:
    size = (len(attentions), backbone.num_heads(next(iter(attentions.values()))))
    recorder = LayoutRecorder(backbone)
    replacements, places = [], _places(model, attentions.values())
    for layer, (name, attn) in enumerate(attentions.items()):
        if layer in processors:
            sparse = HeSSAttention(attn, backbone, processors[layer], recorder)
            replacements.append(Replacement(layer, name, attn, sparse, places[attn]))
    for replacement in replacements:
        replacement.install(replacement.sparse)
    hook = backbone.image_module(model).register_forward_pre_hook(recorder, with_kwargs=True)
    handle = HeSSHandle(model, replacements, hook, size, scores, config)
    object.__setattr__(model, "hess", handle)  # past nn.Module, whose tree it is no part of
    return handle


def _replaceable(
    model: nn.Module, layers: Sequence[int], named: str
) -> tuple[Backbone, dict[str, nn.Module]]:
    """Family and global attentions of a model, after checking that these can be replaced and `layers` are.

    `named` is what the caller gave the layers as.
    """
    backbone = find_backbone(model)
    if backbone.dense_only is not None:
        raise ValueError(f"{backbone.name} cannot have sparse attention: {backbone.dense_only}")
    attentions = backbone.global_attentions(model)
    if "hess" in model.__dict__ or any(isinstance(attn, HeSSAttention) for attn in attentions.values()):
        raise RuntimeError("this model already has sparse attention; call model.hess.remove() first.")
    for layer in layers:
        if layer >= len(attentions):
            raise ValueError(
                f"{named} has {layer}, this model has {len(attentions)} global layers; "
                f"use 0 to {len(attentions) - 1}."
            )
    for name, attn in attentions.items():
        forward = attn.__dict__.get("_old_forward", attn.__dict__.get("forward"))
        if forward is not None and getattr(forward, "__func__", None) is not type(attn).forward:
            raise ValueError(
                f"the forward of {name} was replaced by {forward!r}; undo that, then apply_hess."
            )
    return backbone, attentions


def _check_scores(scores: HeadScores | None, config: HeSSConfig) -> None:
    if scores is not None and not isinstance(scores, HeadScores):
        raise TypeError(f"scores must be HeadScores, got {scores!r}; read a folder with HeadScores.load.")
    if scores is None and config.allocation != "uniform":
        raise ValueError(
            f"allocation={config.allocation!r} needs scores, got None; pass scores or allocation='uniform'."
        )


def _head_weights(
    model: nn.Module, backbone: Backbone, scores: HeadScores | None, config: HeSSConfig
) -> list[list[float]] | None:
    """HeSS of each layer and head, after checking that scores fit; None where the allocation reads none."""
    if scores is None:
        return None
    check_fit(model, backbone, scores.info)
    if config.allocation == "uniform":
        return None
    return scores.weights(config.camera_weight, config.projection, config.normalization).tolist()


def check_fit(model: nn.Module, backbone: Backbone, info: ScoresInfo) -> None:
    """`ScoresInfo.check_fit` with what the model is."""
    attentions = list(backbone.global_attentions(model).values())
    info.check_fit(
        backbone=backbone.name,
        num_layers=len(attentions),
        num_heads=backbone.num_heads(attentions[0]),
        head_dim=backbone.head_dim(attentions[0]),
        weights_sha256=backbone.weights_sha256(model) if info.weights_sha256 else None,
    )


def _places(
    model: nn.Module, children: Iterable[nn.Module]
) -> dict[nn.Module, tuple[tuple[nn.Module, str], ...]]:
    """Parents of modules, by identity: a wrapper around a block hands attributes on, but is no parent."""
    places: dict[nn.Module, tuple[tuple[nn.Module, str], ...]] = {child: () for child in children}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and child in places:
                places[child] += ((parent, name),)
    return places
