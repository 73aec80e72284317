"""Head sensitivity against autograd of a looped per-head computation, and what the call leaves behind."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
from doubles import TINY_MODELS
from torch import Tensor, nn

from hess_plugin.backbones import find_backbone
from hess_plugin.calibration.errors import calibration_errors
from hess_plugin.calibration.fisher import _recomputed_blocks, scene_traces
from hess_plugin.config import PROJECTIONS, CalibrationConfig
from hess_plugin.datasets.scene import Scene
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.models.configuration import VggtConfig
from hess_plugin.models.vggt import VggtModel

HEADS, LAYERS = 2, 3
# Random weights fit no scene.
CONFIG = CalibrationConfig(num_scenes=3, num_views=3, inlier_radius=1.0, max_points=200, min_fitness=0.0)


def tiny_model(dpt_layers: tuple[int, ...] = (0, 1, 1, 2)) -> VggtModel:
    """Random weights, large enough that heads differ and no gradient is lost in rounding."""
    torch.manual_seed(0)
    config = VggtConfig(
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=LAYERS,
        num_heads=HEADS,
        patch_embed="conv",
        camera_trunk_depth=1,
        camera_num_heads=2,
        dpt_features=8,
        dpt_out_channels=(8, 8, 8, 8),
        dpt_layers=dpt_layers,
        enable_track=False,
        layer_scale_init=1.0,
    )
    model = VggtModel(config)
    with torch.no_grad():
        for parameter in model.aggregator.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double().eval()


def scene_of(seed: int, num_views: int = 3) -> Scene:
    scene = synthetic_scene(seed, num_views, image_size=(16, 24))
    return replace(scene, images=scene.images.double())


MODEL = tiny_model()
SCENES = [scene_of(seed) for seed in range(3)]


class LoopedAttention(nn.Module):
    """Attention head by head, each with matrices of its own; shares nothing with the fused form."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        fused = attn.qkv.weight.detach().split(attn.proj.in_features)
        self.query, self.key, self.value = (
            nn.ParameterList(part.clone() for part in weight.chunk(HEADS)) for weight in fused
        )
        self.bias = attn.qkv.bias.detach().view(3, HEADS, -1)
        self.q_norm, self.k_norm, self.proj, self.rope = attn.q_norm, attn.k_norm, attn.proj, attn.rope

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        outputs = []
        for h in range(HEADS):
            q = self.q_norm(x @ self.query[h].T + self.bias[0, h])[:, None]
            k = self.k_norm(x @ self.key[h].T + self.bias[1, h])[:, None]
            q, k = self.rope(q, pos)[:, 0], self.rope(k, pos)[:, 0]
            probs = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
            outputs.append(probs @ (x @ self.value[h].T + self.bias[2, h]))
        return self.proj(torch.cat(outputs, dim=-1))


def brute_force_traces(model: VggtModel, scene: Scene) -> dict[str, Tensor]:
    """By a forward and a `backward()` for each error, through attention that is computed head by head."""
    looped = copy.deepcopy(model)
    for block in looped.aggregator.global_blocks:
        block.attn = LoopedAttention(block.attn)
    traces = {}
    for kind in ("camera", "points"):
        looped.zero_grad()
        errors = calibration_errors(
            find_backbone(MODEL).reconstruct(looped(scene.images[None])), scene, CONFIG
        )
        getattr(errors, kind).backward()
        for projection in PROJECTIONS:
            heads = [getattr(block.attn, projection) for block in looped.aggregator.global_blocks]
            name = kind if projection == "query" else f"{kind}.{projection}"
            traces[name] = torch.stack([torch.stack([(w.grad**2).sum() for w in layer]) for layer in heads])
    return traces


EXPECTED = ("camera", "points", "camera.key", "points.key", "camera.value", "points.value")


def test_traces_equal_looped_heads() -> None:
    traces = scene_traces(MODEL, SCENES[0], replace(CONFIG, projections=PROJECTIONS)).traces
    expected = brute_force_traces(MODEL, SCENES[0])
    assert set(traces) == set(expected) == set(EXPECTED)
    for name, trace in traces.items():
        assert trace.shape == (LAYERS, HEADS)
        assert trace.dtype == torch.float64
        assert (trace > 0).all()
        torch.testing.assert_close(trace, expected[name], rtol=1e-6, atol=0)


def test_more_projections_cost_no_more_passes_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: calls.append(1) or grad(*args, **kwargs)
    )
    alone = scene_traces(MODEL, SCENES[0], CONFIG).traces
    both = scene_traces(MODEL, SCENES[0], replace(CONFIG, projections=("query", "value"))).traces
    assert len(calls) == 2 * 2
    assert set(alone) == {"camera", "points"}
    assert set(both) == {"camera", "points", "camera.value", "points.value"}
    assert all(torch.equal(alone[name], both[name]) for name in alone)


def test_projections_in_modules_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family without fused weight: only those asked for get gradients, the traces are the same."""
    config = replace(CONFIG, projections=("query", "key"))
    expected = scene_traces(MODEL, SCENES[0], config).traces
    model = tiny_model()
    for block in model.aggregator.global_blocks:
        block.attn.qkv = SeparateProjections(block.attn.qkv)
    backbone = type(find_backbone(MODEL))
    monkeypatch.setattr(
        backbone, "projection_weight", lambda self, attn, each: (getattr(attn.qkv, each).weight, slice(None))
    )
    seen = []
    for block in model.aggregator.global_blocks:
        for name in PROJECTIONS:
            weight = getattr(block.attn.qkv, name).weight
            weight.register_hook(lambda grad, name=name: seen.append(name))
    traces = scene_traces(model, SCENES[0], config).traces
    assert set(seen) == {"query", "key"}
    for name, trace in traces.items():
        torch.testing.assert_close(trace, expected[name], rtol=1e-9, atol=0)


class SeparateProjections(nn.Module):
    """q, k and v by three linear layers, one after another as the fused layer gives them."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.out_features = fused.out_features
        weights, biases = fused.weight.detach().chunk(3), fused.bias.detach().chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            linear = nn.Linear(*weight.shape)
            linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            setattr(self, name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, name)(x) for name in PROJECTIONS], dim=-1)


def test_report_is_that_of_the_errors() -> None:
    prediction = find_backbone(MODEL).reconstruct(MODEL(SCENES[0].images[None]))
    errors = calibration_errors(prediction, SCENES[0], CONFIG)
    assert scene_traces(MODEL, SCENES[0], CONFIG).report == pytest.approx(errors.report)


def test_same_bits_whatever_was_computed_before() -> None:
    """Neither other scenes nor the state of the random generators leave a trace."""
    first = scene_traces(MODEL, SCENES[0], CONFIG).traces
    torch.manual_seed(5)
    scene_traces(MODEL, SCENES[1], CONFIG)
    again = scene_traces(MODEL, SCENES[0], CONFIG).traces
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_layer_that_an_error_does_not_depend_on_has_zeros() -> None:
    """The points of this head come from layers 0 and 1, so the last global attention moves no point."""
    model = tiny_model(dpt_layers=(0, 0, 1, 1))
    traces = scene_traces(model, SCENES[0], CONFIG).traces
    assert (traces["points"][-1] == 0).all()
    assert (traces["points"][:-1] > 0).all()
    assert (traces["camera"] > 0).all()


def state_of(model: nn.Module) -> list[tuple[str, object]]:
    flags: list[tuple[str, object]] = [(name, module.training) for name, module in model.named_modules()]
    return flags + [(name, (p.requires_grad, p.grad is None)) for name, p in model.named_parameters()]


def forwards_of(model: nn.Module) -> dict[str, object]:
    """Whatever stands in the place of a class's forward."""
    return {name: m.__dict__["forward"] for name, m in model.named_modules() if "forward" in m.__dict__}


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny_model().train(training)
    model.aggregator.camera_token.requires_grad_(False)
    model.camera_head.train(not training)
    hooked = model.aggregator.global_blocks[0]
    hooked.forward = functools.partial(type(hooked).forward, hooked)  # as libraries with hooks do
    before, forwards, weights = state_of(model), forwards_of(model), copy.deepcopy(model.state_dict())
    trace = scene_traces(model, SCENES[0], CONFIG).traces["camera"]
    assert (state_of(model), forwards_of(model)) == (before, forwards)
    for change, failure in (
        ({"inlier_radius": 1e-9}, "none of 200 predicted points"),
        ({"min_fitness": 1.0}, "scene 'synthetic-0': its alignment explains"),
    ):
        with pytest.raises(ValueError, match=failure):
            scene_traces(model, SCENES[0], replace(CONFIG, gates=True, **change))
        assert (state_of(model), forwards_of(model)) == (before, forwards)
        assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(
        trace, scene_traces(MODEL, SCENES[0], CONFIG).traces["camera"], rtol=1e-9, atol=0
    )


def test_works_without_gradients_around() -> None:
    with torch.no_grad():
        traces = scene_traces(MODEL, SCENES[1], CONFIG).traces
    expected = scene_traces(MODEL, SCENES[1], CONFIG).traces
    assert torch.equal(traces["points"], expected["points"])


@pytest.mark.parametrize("name", TINY_MODELS)
def test_activations_are_recomputed_in_both_passes(name: str) -> None:
    """In every class, the last global attention runs again in each of two backward passes."""
    torch.manual_seed(0)
    model = TINY_MODELS[name]().eval()
    backbone = find_backbone(model)
    attentions, calls = list(backbone.global_attentions(model).values()), []
    attentions[-1].register_forward_hook(lambda *_: calls.append(1))
    scene_traces(model, synthetic_scene(0, 3, image_size=16), replace(CONFIG, inlier_radius=100.0))
    assert len(calls) == 3


def test_blocks_store_nothing_but_their_input() -> None:
    block = MODEL.aggregator.global_blocks[0]
    tokens, angles = torch.rand(1, 6, 16, dtype=torch.float64), torch.zeros(6, 8)
    stored: list[Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t)
    with hooks:
        block(tokens, angles)
        assert len(stored) > 5
        stored.clear()
        with _recomputed_blocks(MODEL, find_backbone(MODEL).global_attentions(MODEL)):
            block(tokens, angles)
        assert {each.data_ptr() for each in stored} <= {tokens.data_ptr(), angles.data_ptr()}


def test_points_from_depth_and_camera() -> None:
    config = replace(CONFIG, point_source="depth", inlier_radius=10.0)
    other = scene_traces(MODEL, SCENES[0], config).traces
    assert all((trace > 0).all() for trace in other.values())
    assert not torch.allclose(other["points"], scene_traces(MODEL, SCENES[0], CONFIG).traces["points"])


def test_gradient_that_is_not_finite_names_scene_and_layer() -> None:
    model = tiny_model()
    model.aggregator.global_blocks[1].attn.qkv.weight.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(ValueError, match=r"'synthetic-2'.*camera error.*aggregator\.global_blocks\.1\.attn"):
        scene_traces(model, SCENES[2], CONFIG)


def patched_model() -> VggtModel:
    model = tiny_model()
    object.__setattr__(model, "hess", object())
    return model


@pytest.mark.parametrize(
    ("model", "scene", "message"),
    [
        (patched_model(), SCENES[0], r"has sparse attention, .* call model\.hess\.remove\(\) first"),
        (nn.Linear(2, 2), SCENES[0], "no backbone matches `Linear`"),
        (MODEL, replace(SCENES[0], depth=None), "scene 'synthetic-0' lacks cameras or depth"),
    ],
)
def test_bad_input(model: nn.Module, scene: Scene, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene_traces(model, scene, CONFIG)
