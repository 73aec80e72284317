"""Head sensitivity: the trace of the empirical Fisher information of each head's query projection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..backbones import Backbone, find_backbone
from ..config import CalibrationConfig
from ..datasets.scene import Scene
from ..scores import ERRORS, HeadScores, ScoresInfo
from .errors import calibration_errors

_ERROR_SETTINGS = ("inlier_radius", "min_confidence_quantile", "max_points", "point_source")


def scene_traces(model: nn.Module, scene: Scene, config: CalibrationConfig) -> dict[str, Tensor]:
    """Squared gradient norm of both errors in every head's W_Q, for one scene: tr(g gᵀ) of Eq. 5 and 6.

    One dense forward and two backward passes, in which only the global attentions' query weights take part.
    Blocks of a transformers model that can recompute their activations do so. Training modes, `requires_grad`
    and `.grad` are as before afterwards, also after an exception.

    Args:
        model: dense model of a known family, on any device.
        scene: with ground truth; all its views are used.
        config: settings of the errors.

    Returns:
        "camera" and "points", each [L, H] float64 on the CPU, layers in the order of the forward.

    Raises:
        ValueError: for a model with sparse attention or of no known family, a scene without ground truth, and
            values that are not finite, naming scene and layer.
    """
    _check_dense(model)
    backbone = find_backbone(model)
    attentions = backbone.global_attentions(model)
    weights = [backbone.query_weight(attn)[0] for attn in attentions.values()]
    scene = scene.to(weights[0].device)
    traces = {}
    with _only_gradients_of(weights, model), _recomputed_activations(model), torch.enable_grad():
        prediction = backbone.reconstruct(model(scene.images[None]), config.point_source)
        errors = calibration_errors(prediction, scene, config)
        for kind in ERRORS:
            gradients = torch.autograd.grad(errors[kind], weights, retain_graph=kind != ERRORS[-1])
            per_layer = zip(attentions.values(), gradients, strict=True)
            traces[kind] = torch.stack([_head_norms(backbone, attn, grad) for attn, grad in per_layer]).cpu()
    for kind, trace in traces.items():
        for layer, heads in zip(attentions, trace, strict=True):
            if not torch.isfinite(heads).all():
                raise ValueError(
                    f"scene {scene.name!r}: the gradient of the {kind} error is not finite in {layer}; "
                    "calibrate in float32, or leave the scene out."
                )
    return traces


def _head_norms(backbone: Backbone, attn: nn.Module, gradient: Tensor) -> Tensor:
    """Squared norm of each head's W_Q rows, [H] float64, of the gradient of the weight that holds them."""
    rows = gradient[backbone.query_weight(attn)[1]].double()
    return rows.unflatten(0, (backbone.num_heads(attn), -1)).square().sum((1, 2))


def calibrate(
    model: nn.Module,
    scenes: Iterable[Scene],
    config: CalibrationConfig,
    *,
    dataset: str,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> HeadScores:
    """Head scores from at most `config.num_scenes` scenes, with every scene's traces kept.

    Each scene is cut to `num_views` views, drawn with `config.seed` in random order; the draw of a scene does
    not depend on the scenes before, so their order changes nothing but the order of the rows.

    Args:
        model: dense model of a known family.
        scenes: with ground truth and at least `num_views` views each.
        config: settings, written into the scores.
        dataset: its name, written into the scores.
        base_model: repository id or folder of the model, written into the scores.
        base_revision: its commit, written into the scores.

    Raises:
        ValueError: for no scenes, two of one name, a scene of too few views, and all that `scene_traces`
            refuses.
    """
    _check_dense(model)
    backbone = find_backbone(model)
    attentions = list(backbone.global_attentions(model).values())
    traces: dict[str, dict[str, Tensor]] = {}
    with tqdm(total=config.num_scenes, desc="calibrating", unit="scene") as progress:
        for scene in islice(scenes, config.num_scenes):
            if scene.name in traces:
                raise ValueError(f"dataset {dataset!r} gave scene {scene.name!r} twice; names must differ.")
            traces[scene.name] = scene_traces(model, _draw_views(scene, config), config)
            progress.update()
    if not traces:
        raise ValueError(f"dataset {dataset!r} gave no scenes; calibration needs at least one.")
    info = ScoresInfo(
        backbone=backbone.name,
        num_layers=len(attentions),
        num_heads=backbone.num_heads(attentions[0]),
        head_dim=backbone.head_dim(attentions[0]),
        dataset=dataset,
        scene_ids=tuple(traces),
        num_views=config.num_views,
        seed=config.seed,
        camera_weight=config.camera_weight,
        calibration={name: getattr(config, name) for name in _ERROR_SETTINGS},
        base_model=base_model,
        base_revision=base_revision,
        weights_sha256=backbone.weights_sha256(model),
    )
    return HeadScores(
        {kind: torch.stack([trace[kind] for trace in traces.values()]) for kind in ERRORS}, info
    )


def _draw_views(scene: Scene, config: CalibrationConfig) -> Scene:
    available = len(scene.images)
    if available < config.num_views:
        raise ValueError(
            f"scene {scene.name!r} has {available} views, num_views is {config.num_views}; "
            "leave the scene out or lower num_views."
        )
    if available == config.num_views:
        return scene
    generator = torch.Generator().manual_seed(config.seed)
    return scene.select(torch.randperm(available, generator=generator)[: config.num_views])


def _check_dense(model: nn.Module) -> None:
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
def _recomputed_activations(model: nn.Module) -> Iterator[None]:
    """Recompute activations in the backward pass where a transformers model can; leave others as they are.

    Only the blocks that recompute are set to training, which they ask for; their children stay in evaluation.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        yield
        return
    was_on = model.is_activation_checkpointing
    if not was_on:
        model.activation_checkpointing_enable()  # type: ignore[operator]
    try:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
        yield
    finally:
        if not was_on:
            model.activation_checkpointing_disable()  # type: ignore[operator]
