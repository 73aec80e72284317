"""The replaced attention inside what others build around models: hooks, checkpointing, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from doubles import TINY_MODELS, TinyVGGT
from patching import UNIFORM, attentions, build, patched, tree
from sidecars import images, outputs, same, scores_of, sparse
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from hess_plugin.backbones import find_backbone
from hess_plugin.patch import apply_hess


@pytest.fixture(params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


class CountCalls(ModelHook):
    """An accelerate hook that counts, and remembers how often it was set up."""

    def __init__(self) -> None:
        self.set_up = self.before = self.after = 0

    def init_hook(self, module: nn.Module) -> nn.Module:
        self.set_up += 1
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict[str, Any]]:
        self.before += 1
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        self.after += 1
        return output


class TestHooks:
    def test_forward_hooks_on_the_attention_fire(self, model: nn.Module) -> None:
        calls = []
        registered = attentions(model)[0].register_forward_hook(lambda *call: calls.append(call[0]))
        with apply_hess(model, None, UNIFORM):
            outputs(model)
            assert calls == [attentions(model)[0]]
        outputs(model)
        assert calls[1] is attentions(model)[0]
        registered.remove()
        outputs(model)
        assert len(calls) == 2

    def test_device_hook_on_the_attention_moves_along(self, model: nn.Module) -> None:
        hook, attn = CountCalls(), attentions(model)[0]
        add_hook_to_module(attn, hook)
        before, dense = tree(model), outputs(model)
        with apply_hess(model, None, UNIFORM):
            assert not same(outputs(model), dense)
            assert (hook.set_up, hook.before, hook.after) == (1, 2, 2)
        assert tree(model) == before
        assert same(outputs(model), dense)
        assert (hook.set_up, hook.before, hook.after) == (1, 3, 3)

    def test_device_hook_set_or_removed_meanwhile(self, model: nn.Module) -> None:
        hook = CountCalls()
        dense = outputs(model)
        with apply_hess(model, None, UNIFORM):
            add_hook_to_module(attentions(model)[0], hook)
            outputs(model)
        assert same(outputs(model), dense)
        assert (hook.set_up, hook.before) == (1, 2)
        with apply_hess(model, None, UNIFORM):
            remove_hook_from_module(attentions(model)[0])
        assert same(outputs(model), dense)
        assert hook.before == 2

    def test_after_a_device_hook_was_removed(self, model: nn.Module) -> None:
        """accelerate leaves a bound forward in the instance; it must not win over ours."""
        attn = attentions(model)[0]
        remove_hook_from_module(add_hook_to_module(attn, CountCalls()))
        assert "forward" in attn.__dict__
        handle = apply_hess(model, None, UNIFORM)
        outputs(model)
        assert handle.stats.sparsity.min() > 0

    @pytest.mark.parametrize("first", ["offload", "patch"])
    def test_cpu_offload(self, model: nn.Module, first: str) -> None:
        expected = outputs(patched(copy.deepcopy(model)))
        scores, config = scores_of(model), sparse()
        steps: list[Callable[[], Any]] = [
            lambda: cpu_offload(model, execution_device="cpu"),
            lambda: apply_hess(model, scores, config),
        ]
        for step in steps if first == "offload" else reversed(steps):
            step()
        assert attentions(model)[0].qkv.weight.is_meta
        assert same(outputs(model), expected)


class TestTraining:
    def test_activation_checkpointing_gives_the_same_gradients(self, model: nn.Module) -> None:
        patched(model)
        plain = _gradients(model)
        model.train()
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        for found, expected in zip(_gradients(model), plain, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def test_checkpoint_wrappers_around_blocks(self, model: nn.Module) -> None:
        expected = outputs(patched(copy.deepcopy(model)))
        dense = outputs(model)
        is_pi3 = find_backbone(model).name == "pi3"
        blocks = model.decoder if is_pi3 else model.aggregator.global_blocks
        for index, block in enumerate(blocks):
            blocks[index] = checkpoint_wrapper(block)
        keys = list(model.state_dict())
        with apply_hess(model, scores_of(model), sparse()):
            assert list(model.state_dict()) == keys
            assert same(outputs(model), expected)
            assert all(gradient.isfinite().all() for gradient in _gradients(model))
        assert same(outputs(model), dense)
        assert list(model.state_dict()) == keys


def _gradients(model: nn.Module) -> list[Tensor]:
    weights = [attn.qkv.weight for attn in attentions(model)]
    result = find_backbone(model).reconstruct(model(images()))
    return list(torch.autograd.grad(result.points.square().mean() + result.extrinsics.sum(), weights))


class TestCompile:
    @pytest.mark.parametrize(
        "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow(reason="minutes of C++"))]
    )
    def test_equal_results(self, backend: str) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = TinyVGGT(depth=1).eval()
        dense = outputs(model)
        expected = outputs(patched(model))
        compiled = torch.compile(model, backend=backend)
        for found, plain in zip(outputs(compiled), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
        model.hess.remove()
        for found, plain in zip(outputs(compiled), dense, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-5)
