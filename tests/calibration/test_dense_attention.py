"""Dense attention by the block-sparse kernels: equal to PyTorch's, where it pays, and gone afterwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from doubles import TINY_MODELS
from hess_plugin.kernels.hess_attention import block_sparse_attention
from torch import Tensor, nn
from torch.nn import functional as F

from hess_plugin.calibration import dense_attention as module
from hess_plugin.calibration import fisher
from hess_plugin.calibration.dense_attention import fast_gradients, full_lists, kernel_versions
from hess_plugin.calibration.fisher import scene_traces
from hess_plugin.calibration.reproducible import reproducible
from hess_plugin.config import CalibrationConfig
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.models import VggtConfig, VggtModel

CPU = torch.device("cpu")
DENSE = F.scaled_dot_product_attention
CONFIG = CalibrationConfig(num_views=3, inlier_radius=100.0, max_points=200, min_fitness=0.0, icp=False)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Take what a GPU would take, of any length, to the reference; the shapes that were taken."""
    shapes: list[tuple[int, ...]] = []

    def attend(q: Tensor, *args: Tensor, **keywords: Any) -> Tensor:
        shapes.append(tuple(q.shape))
        return block_sparse_attention(q, *args, **keywords)

    monkeypatch.setattr(module, "resolve_backend", lambda *call: "triton")
    monkeypatch.setattr(module, "block_sparse_attention", attend)
    monkeypatch.setattr(module, "DTYPES", (torch.float64, torch.bfloat16, torch.float16))
    monkeypatch.setattr(module, "MIN_TOKENS", 2)
    return shapes


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    assert F.scaled_dot_product_attention is DENSE


def qkv_of(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Strided as models make them: tokens before heads in memory."""
    batch, heads, tokens, dim = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, batch, tokens, heads, dim, generator=generator, dtype=torch.float64)
    return tuple(x.requires_grad_() for x in qkv.to(dtype).transpose(2, 3).unbind())


def outputs_and_gradients(qkv: tuple[Tensor, ...], **keywords: Any) -> list[Tensor]:
    out = F.scaled_dot_product_attention(*qkv, **keywords)
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, qkv, grad)]


SHAPES = [(1, 2, 2, 16), (2, 3, 64, 16), (1, 1, 129, 32), (3, 2, 300, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_dense_attention(
    shape: tuple[int, ...], taken: list[tuple[int, ...]]
) -> None:
    qkv = qkv_of(*shape)
    expected = outputs_and_gradients(qkv)
    with fast_gradients():
        found = outputs_and_gradients(qkv, dropout_p=0.0, scale=shape[-1] ** -0.5)
    assert taken == [shape]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 37, 16), (2, 1, 150, 16)])
def test_the_kernels_give_them_too(
    shape: tuple[int, ...], taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As near to the truth as PyTorch's attention in float16; on a CPU in Triton's interpreter."""
    pytest.importorskip("triton")
    kernels = functools.partial(block_sparse_attention, backend="triton")
    monkeypatch.setattr(module, "block_sparse_attention", kernels)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    qkv = tuple(x.detach().to(device).requires_grad_() for x in qkv_of(*shape, dtype=torch.float16))
    truth = outputs_and_gradients(tuple(x.detach().cpu().double().requires_grad_() for x in qkv))
    with torch.device(device):
        rounded = outputs_and_gradients(qkv)
        with fast_gradients():
            found = outputs_and_gradients(qkv)
    for own, dense, true in zip(found, rounded, truth, strict=True):
        allowed = 3 * (dense.cpu().double() - true).abs().max() + 2**-10 * true.abs().max()
        assert own.dtype == torch.float16
        assert (own.cpu().double() - true).abs().max() <= allowed


def calls() -> dict[str, tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Calls that are PyTorch's, each by one property."""
    q, k, v = qkv_of(2, 2, 70, 16)
    causal = torch.ones(70, 70, dtype=torch.bool).tril()
    return {
        "mask": ((q, k, v), {"attn_mask": causal}),
        "mask by position": ((q, k, v, causal), {}),
        "causal": ((q, k, v), {"is_causal": True}),
        "dropout": ((q, k, v), {"dropout_p": 0.5}),
        "another scale": ((q, k, v), {"scale": 1.0}),
        "other keys": ((q, k[:, :, :69], v[:, :, :69]), {}),
        "grouped heads": ((q, k[:, :1], v[:, :1]), {"enable_gqa": True}),
        "no batch": ((q[0], k[0], v[0]), {}),
        "short": ((q[:, :, :1], k[:, :, :1], v[:, :, :1]), {}),
        "float32": ((q.float(), k.float(), v.float()), {}),
    }


@pytest.mark.parametrize("name", calls())
def test_other_calls_are_left_to_pytorch(name: str, taken: list[tuple[int, ...]]) -> None:
    args, keywords = calls()[name]
    torch.manual_seed(0)
    expected = DENSE(*args, **keywords)
    torch.manual_seed(0)
    with fast_gradients():
        assert torch.equal(F.scaled_dot_product_attention(*args, **keywords), expected)
    assert taken == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cpu_keeps_pytorchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced but the question whether the kernels are reached."""
    monkeypatch.setattr(module, "block_sparse_attention", lambda *args, **keywords: pytest.fail("taken"))
    qkv = qkv_of(1, 1, module.MIN_TOKENS, 16, dtype=dtype)
    expected = outputs_and_gradients(qkv)
    with fast_gradients():
        assert all(map(torch.equal, outputs_and_gradients(qkv), expected))
    assert kernel_versions(CPU) == {}


def test_autocast_takes_mixed_dtypes(taken: list[tuple[int, ...]]) -> None:
    """The original classes hand over float32 queries and keys, which their norms give."""
    q, k, v = (x.detach().float().requires_grad_() for x in qkv_of(2, 2, 70, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = outputs_and_gradients((q, k, v))
        with fast_gradients():
            found = outputs_and_gradients((q, k, v.bfloat16()))
            outputs_and_gradients((q.double(), k.double(), v.double()))
    assert taken == [(2, 2, 70, 16)] * 2
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0.05, atol=0.02)


def test_lists_are_made_once_per_shape(taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        module, "full_lists", lambda shape, device: made.append(shape) or lists(shape, device)
    )
    lists = full_lists
    with fast_gradients():
        for tokens in (150, 70, 150):
            outputs_and_gradients(qkv_of(1, 2, tokens, 16))
    assert (len(taken), made) == (3, [(1, 2, 150), (1, 2, 70)])


def test_full_lists() -> None:
    counts, indices = full_lists((2, 3, 257), CPU)
    assert counts.shape == (2, 3, 3)
    assert (counts == 5).all()
    assert indices.shape == (2, 3, 3, 5)
    assert (indices == torch.arange(5)).all()
    assert indices.is_contiguous()
    assert counts.dtype == indices.dtype == torch.int32


def test_comes_back_after_an_error(taken: list[tuple[int, ...]]) -> None:
    with pytest.raises(KeyError) as error, fast_gradients():
        raise KeyError(F.scaled_dot_product_attention)
    assert error.value.args[0] is not DENSE
    assert F.scaled_dot_product_attention is DENSE
    scene = synthetic_scene(0, 3, image_size=16)
    with pytest.raises(ValueError, match="none of 200 predicted points"):
        scene_traces(small_model(), scene, replace(CONFIG, inlier_radius=1e-9))
    assert taken == []  # of float32
    assert F.scaled_dot_product_attention is DENSE


def small_model() -> VggtModel:
    torch.manual_seed(0)
    config = VggtConfig(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, patch_embed="conv",
        camera_trunk_depth=1, camera_num_heads=2, dpt_features=8, dpt_out_channels=(8, 8, 8, 8),
        dpt_layers=(0, 0, 1, 1), enable_track=False, layer_scale_init=1.0,
    )  # fmt: skip
    return VggtModel(config).eval()


def traces_of(model: nn.Module, size: int, config: CalibrationConfig, fast: bool = True) -> dict[str, Tensor]:
    scene = synthetic_scene(0, 3, image_size=size)
    scene = replace(scene, images=scene.images.to(next(model.parameters()).dtype))
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(fisher, "fast_gradients", nullcontext)
        return scene_traces(model, scene, config).traces


@pytest.mark.parametrize("name", TINY_MODELS)
def test_traces_are_those_of_dense_attention(name: str, taken: list[tuple[int, ...]]) -> None:
    """In our models and in original classes, in the forward and when blocks are computed again."""
    torch.manual_seed(0)
    model = TINY_MODELS[name]().double().eval()
    expected = traces_of(model, 24, CONFIG, fast=False)
    assert taken == []
    found = traces_of(model, 24, CONFIG)
    tokens = max(shape[2] for shape in taken)  # of all views
    layers = len(expected["camera"])
    assert sum(shape[2] == tokens for shape in taken) == 3 * layers
    assert any(shape[0] == 3 for shape in taken)  # frame attention
    for name, trace in found.items():
        assert (expected[name] > 0).any()
        torch.testing.assert_close(trace, expected[name], rtol=1e-8, atol=0)


def test_traces_by_the_kernels(taken: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd's bookkeeping of a custom operator in blocks that are computed again, twice."""
    pytest.importorskip("triton")
    kernels = functools.partial(module.block_sparse_attention, backend="triton")
    monkeypatch.setattr(module, "block_sparse_attention", kernels)
    monkeypatch.setattr(module, "DTYPES", (torch.float32,))
    model = small_model().to("cuda" if torch.cuda.is_available() else "cpu")
    config = replace(CONFIG, precision="float32")
    expected = traces_of(model, 24, config, fast=False)
    for name, trace in traces_of(model, 24, config).items():
        torch.testing.assert_close(trace, expected[name], rtol=1e-3, atol=0)
    assert len([shape for shape in taken if shape == (1, 2, 42, 16)]) == 3 * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    """783 tokens in global attention, which are taken, and 261 in frame attention, which are not."""

    CONFIG = replace(CONFIG, precision="bfloat16")

    def test_traces(self) -> None:
        model = small_model().cuda()
        with reproducible(torch.device("cuda")):
            dense = traces_of(model, 128, self.CONFIG, fast=False)
            found, again = (traces_of(model, 128, self.CONFIG) for _ in range(2))
        for name, trace in found.items():
            assert torch.equal(trace, again[name])
            assert not torch.equal(trace, dense[name])  # else the kernels did not run
            shares, expected = (x / x.sum(1, keepdim=True) for x in (trace, dense[name]))
            torch.testing.assert_close(shares, expected, rtol=0, atol=0.05)
            torch.testing.assert_close(trace.sum(1), dense[name].sum(1), rtol=0.1, atol=0)

    @pytest.mark.parametrize("shape", [(1, 16, 2748, 64), (20, 16, 1374, 64), (2, 3, 1001, 128)])
    def test_gradients_as_good_as_pytorchs(self, shape: tuple[int, ...]) -> None:
        qkv = tuple(x.detach().cuda().requires_grad_() for x in qkv_of(*shape, dtype=torch.bfloat16))
        grad = torch.randn(shape, device="cuda")

        def gradients(qkv: tuple[Tensor, ...]) -> list[Tensor]:
            out = F.scaled_dot_product_attention(*qkv)
            return [out, *torch.autograd.grad(out, qkv, grad.to(out.dtype))]

        with reproducible(torch.device("cuda")):
            truth = gradients(tuple(x.detach().float().requires_grad_() for x in qkv))
            dense = gradients(qkv)
            with fast_gradients():
                found, again = gradients(qkv), gradients(qkv)
        assert kernel_versions(torch.device("cuda"))["triton"]
        for own, same, rounded, true in zip(found, again, dense, truth, strict=True):
            assert torch.equal(own, same)
            assert (own - true).abs().max() <= 3 * (rounded - true).abs().max()
