"""Head sensitivity: the trace of the empirical Fisher information of each head's projections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..backbones import Backbone, find_backbone
from ..config import CalibrationConfig, Projection
from ..datasets.scene import Scene
from ..gates import gate_name
from ..scores import ERRORS, trace_name
from .dense_attention import fast_gradients
from .errors import calibration_errors
from .head_gates import head_gates


@dataclass(frozen=True)
class SceneTraces:
    """What one scene says about the heads, and what happened on the way."""

    traces: dict[str, Tensor]  # by `scores.trace_name` and `gates.gate_name`, [L, H] float64 on the CPU
    report: dict[str, float]  # of `calibration_errors`


def scene_traces(model: nn.Module, scene: Scene, config: CalibrationConfig) -> SceneTraces:
    """Squared gradient norms of both errors in every head's W_Q, for one scene: tr(g gᵀ) of Eq. 5 and 6.

    One dense forward and two backward passes, in which only the weights that hold the global attentions'
    projections take part; W_K and W_V, where asked for, come out of the same two passes. Transformer blocks
    keep nothing but their input and compute the rest again in each backward pass, for all model classes
    alike: upstream code does so in training mode only. Both passes share the forward, so what lies behind the
    blocks (the dense heads) is stored until the second. On a GPU, 16-bit attention takes the kernels of
    `fast_gradients`.

    Training modes, `requires_grad` and `.grad` are as before afterwards, also after an exception. Nothing is
    drawn at random but by `config.seed`: on a CPU a scene gives the same bits whatever was computed before,
    on a GPU if the caller has enabled deterministic algorithms.

    Args:
        model: dense model of a known family, on any device.
        scene: with ground truth; all its views are used.
        config: settings of the errors, and the projections to measure.

    Returns:
        Traces of every error and projection, with `config.gates` also the gradients of both errors by head
        gates, from the same passes; layers in the order of the forward. A layer that an error does
        not depend on has zeros.

    Raises:
        ValueError: for a model with sparse attention or of no known family, a scene without ground truth or
            that cannot be aligned, and values that are not finite, naming scene and layer.
    """
    check_dense(model)
    backbone = find_backbone(model)
    attentions = backbone.global_attentions(model)
    weights = _weights_of(backbone, attentions.values(), config.projections)
    scene = scene.to(weights[0].device)
    traces: dict[str, Tensor] = {}
    with (
        _only_gradients_of(weights, model),
        _recomputed_blocks(model, attentions),
        fast_gradients(),
        head_gates(backbone, attentions.values() if config.gates else ()) as gates,
        torch.enable_grad(),
    ):
        # No name for the prediction: what no error needs is freed before the backward passes.
        errors = calibration_errors(
            backbone.reconstruct(_predict(backbone, model, scene.images[None], config), config.point_source),
            scene,
            config,
        )
        for kind in ERRORS:
            gradients = torch.autograd.grad(
                getattr(errors, kind),
                [*weights, *gates],
                retain_graph=kind != ERRORS[-1],
                materialize_grads=True,
            )
            by_weight = dict(zip(map(id, weights), gradients, strict=False))
            if gates:
                traces[gate_name(kind)] = torch.stack(gradients[len(weights) :]).double().cpu()
            for projection in config.projections:
                heads = [_head_norms(backbone, attn, projection, by_weight) for attn in attentions.values()]
                traces[trace_name(kind, projection)] = torch.stack(heads).cpu()
    _check_finite(traces, attentions, scene.name)
    return SceneTraces(traces, errors.report)


def _predict(backbone: Backbone, model: nn.Module, images: Tensor, config: CalibrationConfig) -> Any:
    """The model's outputs; in bfloat16 only the model runs, and families exempt their own heads from it."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision_on(device) == "bfloat16"):
        return backbone.predict(model, images)


def _weights_of(
    backbone: Backbone, attentions: Iterable[nn.Module], projections: Sequence[Projection]
) -> list[nn.Parameter]:
    """The weights that hold these projections; a fused one once."""
    weights = [backbone.projection_weight(attn, each)[0] for attn in attentions for each in projections]
    return list({id(weight): weight for weight in weights}.values())


def _head_norms(
    backbone: Backbone, attn: nn.Module, projection: Projection, gradients: dict[int, Tensor]
) -> Tensor:
    """Squared norm of the gradient in each head's rows of a projection, [H] float64."""
    weight, rows = backbone.projection_weight(attn, projection)
    gradient = gradients[id(weight)][rows].double()
    return gradient.unflatten(0, (backbone.num_heads(attn), -1)).square().sum((1, 2))


def _check_finite(traces: dict[str, Tensor], attentions: Iterable[str], scene: str) -> None:
    for name, trace in traces.items():
        for layer, heads in zip(attentions, trace, strict=True):
            if not torch.isfinite(heads).all():
                raise ValueError(
                    f"scene {scene!r}: the gradient of the {name} error is not finite in {layer}; "
                    "calibrate in float32, or leave the scene out."
                )


def check_dense(model: nn.Module) -> None:
    """Refuse a model with sparse attention (ValueError)."""
    if getattr(model, "hess", None) is not None:
        raise ValueError(
            "this model has sparse attention, but head sensitivity is measured on the dense model; "
            "call model.hess.remove() first."
        )


@contextmanager
def _only_gradients_of(weights: Sequence[Tensor], model: nn.Module) -> Iterator[None]:
    """Let gradients reach these weights and no other parameter, in evaluation mode; then as before."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval().requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


@contextmanager
def _recomputed_blocks(model: nn.Module, attentions: Iterable[str]) -> Iterator[None]:
    """Recompute the activations of transformer blocks in the backward pass; then as before.

    Blocks are the modules right above the global attentions, and all others of the same class: in every known
    family these are the frame attention's blocks too.
    """
    kinds = {type(model.get_submodule(name.rpartition(".")[0])) for name in attentions}
    blocks = [module for module in model.modules() if type(module) in kinds]
    own = [block.__dict__.get("forward") for block in blocks]  # of hooks such as accelerate's; mostly None
    try:
        for block in blocks:
            # No dropout in evaluation mode, so the state of the random generators does not matter.
            block.__dict__["forward"] = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward
