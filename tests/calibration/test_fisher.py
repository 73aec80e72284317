"""Head sensitivity against autograd of a looped per-head computation, and what the call leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hess_plugin.backbones import find_backbone
from hess_plugin.calibration.errors import GroundTruth, align, camera_error, point_error
from hess_plugin.calibration.fisher import calibrate, scene_traces
from hess_plugin.config import CalibrationConfig
from hess_plugin.datasets.scene import Scene
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.geometry.cameras import camera_centers
from hess_plugin.models.configuration import VggtConfig
from hess_plugin.models.vggt import VggtModel

HEADS, LAYERS = 2, 3
CONFIG = CalibrationConfig(num_scenes=3, num_views=3, inlier_radius=1.0, max_points=200)


def tiny_model() -> VggtModel:
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
        dpt_layers=(0, 1, 1, 2),
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
    """Attention head by head, each with a query matrix of its own; shares nothing with the fused form."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        q, k, v = attn.qkv.weight.detach().split(attn.proj.in_features)
        self.query = nn.ParameterList(part.clone() for part in q.chunk(HEADS))
        self.key, self.value = k.chunk(HEADS), v.chunk(HEADS)
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
    looped = copy.deepcopy(model)
    for block in looped.aggregator.global_blocks:
        block.attn = LoopedAttention(block.attn)
    traces = {}
    for kind in ("camera", "points"):
        looped.zero_grad()
        outputs = looped(scene.images[None])
        truth = GroundTruth.of(scene)
        transform = align(outputs.world_points[0], torch.ones_like(truth.mask), truth)
        if kind == "camera":
            error = camera_error(camera_centers(outputs.extrinsics[0]), truth, transform)
        else:
            points = outputs.world_points[0].reshape(-1, 3)
            drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:200]
            error = point_error(points[drawn], truth, transform, CONFIG.inlier_radius)
        error.backward()
        grads = [[w.grad for w in block.attn.query] for block in looped.aggregator.global_blocks]
        traces[kind] = torch.stack([torch.stack([(g * g).sum() for g in layer]) for layer in grads])
    return traces


def test_traces_equal_looped_heads() -> None:
    traces = scene_traces(MODEL, SCENES[0], CONFIG)
    expected = brute_force_traces(MODEL, SCENES[0])
    assert traces.keys() == expected.keys()
    for kind, trace in traces.items():
        assert trace.shape == (LAYERS, HEADS)
        assert trace.dtype == torch.float64
        assert (trace > 0).all()
        torch.testing.assert_close(trace, expected[kind], rtol=1e-6, atol=0)


def test_scores_are_the_mean_over_scenes() -> None:
    scores = calibrate(MODEL, SCENES, CONFIG, dataset="toy", base_model="org/toy", base_revision="abc")
    for kind in ("camera", "points"):
        rows = torch.stack([scene_traces(MODEL, scene, CONFIG)[kind] for scene in SCENES])
        torch.testing.assert_close(scores.scene_traces[kind], rows, rtol=1e-9, atol=0)
        torch.testing.assert_close(scores.fisher_trace[kind], rows.sum(0) / 3, rtol=1e-9, atol=0)
    info = scores.info
    assert (info.backbone, info.num_layers, info.num_heads, info.head_dim) == ("vggt", LAYERS, HEADS, 8)
    assert info.scene_ids == ("synthetic-0", "synthetic-1", "synthetic-2")
    assert (info.dataset, info.base_model, info.base_revision) == ("toy", "org/toy", "abc")
    assert (info.num_views, info.seed, info.camera_weight) == (3, 0, 0.5)
    assert info.weights_sha256 == find_backbone(MODEL).weights_sha256(MODEL)
    assert info.calibration["inlier_radius"] == 1.0
    assert info.calibration["max_points"] == 200


def test_scores_do_not_depend_on_scene_order() -> None:
    scenes = [scene_of(seed, num_views=5) for seed in (4, 5, 6)]  # views are drawn
    forward = calibrate(MODEL, scenes, CONFIG, dataset="toy")
    backward = calibrate(MODEL, scenes[::-1], CONFIG, dataset="toy")
    assert torch.equal(forward.scene_traces["camera"], backward.scene_traces["camera"].flip(0))
    torch.testing.assert_close(forward.weights(), backward.weights(), rtol=1e-12, atol=0)


def test_views_are_drawn_by_seed() -> None:
    scene = scene_of(4, num_views=5)

    def trace(seed: int) -> Tensor:
        config = replace(CONFIG, num_scenes=1, seed=seed)
        return calibrate(MODEL, [scene], config, dataset="toy").scene_traces["camera"]

    assert torch.equal(trace(0), trace(0))
    assert not torch.allclose(trace(0), trace(1))


def test_no_more_scenes_are_read_than_asked_for() -> None:
    def endless() -> Iterator[Scene]:
        for seed in range(10):
            assert seed < 2, "a third scene was asked for"
            yield scene_of(seed)

    scores = calibrate(MODEL, endless(), replace(CONFIG, num_scenes=2), dataset="toy")
    assert len(scores.info.scene_ids) == 2


def state_of(model: nn.Module) -> list[tuple[str, object]]:
    flags: list[tuple[str, object]] = [(name, module.training) for name, module in model.named_modules()]
    return flags + [(name, (p.requires_grad, p.grad is None)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model = tiny_model().train(training)
    model.aggregator.camera_token.requires_grad_(False)
    model.camera_head.train(not training)
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    trace = scene_traces(model, SCENES[0], CONFIG)["camera"]
    assert state_of(model) == before
    assert not model.is_activation_checkpointing
    with pytest.raises(ValueError, match="none of 200 predicted points"):
        scene_traces(model, SCENES[0], replace(CONFIG, inlier_radius=1e-9))
    assert state_of(model) == before
    assert not model.is_activation_checkpointing
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(trace, scene_traces(MODEL, SCENES[0], CONFIG)["camera"], rtol=1e-9, atol=0)


def test_works_without_gradients_around() -> None:
    with torch.no_grad():
        trace = scene_traces(MODEL, SCENES[1], CONFIG)["points"]
    torch.testing.assert_close(trace, scene_traces(MODEL, SCENES[1], CONFIG)["points"], rtol=1e-9, atol=0)


def test_activations_are_recomputed_where_the_model_can() -> None:
    """The last block's attention runs again in each of two backward passes; the traces are the same."""
    calls = {True: 0, False: 0}
    traces = {}
    for supported in (True, False):
        model = tiny_model()
        model.supports_gradient_checkpointing = supported

        def count(*_: object, supported: bool = supported) -> None:
            calls[supported] += 1

        model.aggregator.global_blocks[-1].attn.register_forward_hook(count)
        traces[supported] = scene_traces(model, SCENES[0], CONFIG)
    assert calls == {True: 3, False: 1}
    for kind in ("camera", "points"):
        torch.testing.assert_close(traces[True][kind], traces[False][kind], rtol=1e-9, atol=0)


def test_points_from_depth_and_camera() -> None:
    other = scene_traces(MODEL, SCENES[0], replace(CONFIG, point_source="depth", inlier_radius=10.0))
    assert all((trace > 0).all() for trace in other.values())
    assert not torch.allclose(other["points"], scene_traces(MODEL, SCENES[0], CONFIG)["points"])


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
    ("model", "scenes", "message"),
    [
        (patched_model(), SCENES, r"has sparse attention, .* call model\.hess\.remove\(\) first"),
        (nn.Linear(2, 2), SCENES, "no backbone matches `Linear`"),
        (MODEL, [], "dataset 'toy' gave no scenes"),
        (MODEL, [SCENES[0], SCENES[0]], "gave scene 'synthetic-0' twice"),
        (MODEL, [scene_of(0, 2)], "scene 'synthetic-0' has 2 views, num_views is 3"),
        (MODEL, [replace(SCENES[0], depth=None)], "scene 'synthetic-0' lacks cameras or depth"),
    ],
)
def test_calibrate_bad_input(model: nn.Module, scenes: list[Scene], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(model, scenes, CONFIG, dataset="toy")
