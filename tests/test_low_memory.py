"""A model of the original class in pieces: same results, fewer tokens at a time, nothing kept unread."""

from __future__ import annotations

import copy

import pytest
import torch
from doubles import TinyPi3, TinyVGGT, tiny_native_vggt
from doubles_family import TinyStreamVGGT, TinyVGGTOmega
from patching import UNIFORM, tree
from torch import Tensor, nn

from hess_plugin import apply_hess, save_memory

VIEWS, TOKENS = 5, 5 * 9  # 2 x 2 patches and 5 special tokens


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return TinyVGGT(depth=4).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(1, VIEWS, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_close(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 7), (3, 45), (100, 1000)])
@torch.no_grad()
def test_same_results(model: nn.Module, images: Tensor, sizes: tuple[int, int]) -> None:
    expected = model(images)
    with save_memory(model, *sizes):
        assert_close(model(images), expected)
        assert_close(model(images=images), expected)


@torch.no_grad()
def test_some_views_and_tokens_at_a_time(model: nn.Module, images: Tensor) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {"frame": [], "mlp": []}
    aggregator = model.aggregator

    def record(name: str, hidden: Tensor) -> None:
        shapes[name].append(tuple(hidden.shape))

    aggregator.frame_blocks[1].attn.register_forward_hook(lambda m, x, out: record("frame", out))
    aggregator.global_blocks[1].mlp.fc1.register_forward_hook(lambda m, x, out: record("mlp", out))
    with save_memory(model, 2, 20):
        model(images)
    assert shapes == {"frame": [(2, 9, 32), (2, 9, 32), (1, 9, 32)], "mlp": [(20, 128), (20, 128), (5, 128)]}


@torch.no_grad()
def test_only_outputs_that_are_read_hold_memory(model: nn.Module, images: Tensor) -> None:
    model.depth_head.intermediate_layer_idx = [1, -1]
    expected, _ = model.aggregator(images)
    with save_memory(model):
        outputs, start = model.aggregator(images)
    assert start == 5
    assert [x.shape for x in outputs] == [(1, VIEWS, 9, 64)] * 4
    for layer in (1, 3):
        assert torch.equal(outputs[layer], expected[layer])
    for layer in (0, 2):
        assert outputs[layer].isnan().all()
        assert outputs[layer].untyped_storage().nbytes() == 4


@torch.no_grad()
def test_removal_leaves_no_trace(model: nn.Module, images: Tensor) -> None:
    before, expected = tree(model), model(images)
    handle = save_memory(model, 2, 7)
    assert tree(model) != before
    handle.remove()
    handle.remove()
    assert tree(model) == before
    assert_close(model(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("first", ["sparse", "low"])
def test_together_with_sparse_attention(model: nn.Module, images: Tensor, first: str) -> None:
    before = tree(model)
    with apply_hess(model, None, UNIFORM):
        expected = model(images)
    if first == "sparse":
        apply_hess(model, None, UNIFORM)
    handle = save_memory(model, 2, 7)
    if first == "low":
        apply_hess(model, None, UNIFORM)
    assert_close(model(images), expected)
    model.hess.remove()
    handle.remove()
    assert tree(model) == before


def test_gradients_see_whole_tensors(model: nn.Module, images: Tensor) -> None:
    def gradient() -> Tensor:
        model.zero_grad()
        model(images)["depth"].mean().backward()
        return model.aggregator.camera_token.grad.clone()

    expected = gradient()
    with save_memory(model, 2, 7):
        assert torch.equal(gradient(), expected)


def test_an_earlier_wrapper_stays(model: nn.Module) -> None:
    mlp = model.aggregator.global_blocks[0].mlp
    wrapper = mlp.forward = copy.copy(mlp.forward)
    save_memory(model).remove()
    assert mlp.__dict__["forward"] is wrapper


@pytest.mark.parametrize("build", [TinyPi3, tiny_native_vggt, TinyVGGTOmega, TinyStreamVGGT])
def test_other_models(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="knows no pieces of"):
        save_memory(build())


@torch.no_grad()
def test_what_cannot_be(model: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 views"):
        save_memory(model, 0)
    handle = save_memory(model)
    with pytest.raises(RuntimeError, match="on this model already"):
        save_memory(model)
    mlp = model.aggregator.global_blocks[0].mlp
    ours, mlp.forward = mlp.forward, lambda x: x
    with pytest.raises(RuntimeError, match="replaced after save_memory"):
        handle.remove()
    mlp.forward = ours
    # Outputs that are put together in another way are not recognised, and that is said.
    model.aggregator.frame_blocks = model.aggregator.frame_blocks[:3]
    model.aggregator.global_blocks = model.aggregator.global_blocks[:3]
    with pytest.raises(RuntimeError, match="saw 3 outputs of 4 layers"):
        model(images)
