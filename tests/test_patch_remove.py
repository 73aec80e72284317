"""What is refused, and what comes back when sparse attention is removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import TINY_MODELS, TinyVGGT
from patching import UNIFORM, attentions, build, tree, with_other_weights
from sidecars import images, outputs, same, scores_of, sparse
from torch import nn

from hess_plugin.attention import HeSSAttention
from hess_plugin.backbones import find_backbone
from hess_plugin.config import HeSSConfig
from hess_plugin.patch import apply_hess


@pytest.fixture(params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


class TestBadInput:
    @pytest.mark.parametrize("dense_layers", [(), (0,), (0, 1)])
    def test_applying_twice(self, model: nn.Module, dense_layers: tuple[int, ...]) -> None:
        handle = apply_hess(model, None, HeSSConfig(allocation="uniform", dense_layers=dense_layers))
        before = tree(model)
        with pytest.raises(
            RuntimeError, match=r"already has sparse attention; call model\.hess\.remove\(\) first"
        ):
            apply_hess(model, scores_of(model), sparse())
        assert tree(model) == before
        handle.remove()
        apply_hess(model, None, UNIFORM).remove()

    def test_scores_of_another_model(self, model: nn.Module) -> None:
        other = TinyVGGT(depth=3, num_heads=2)
        before = tree(model)
        with pytest.raises(
            ValueError, match="scores are for vggt with 3 layers x 2 heads of 16, this model is"
        ):
            apply_hess(model, scores_of(other), sparse())
        assert tree(model) == before

    def test_scores_of_other_weights_warn(self, model: nn.Module) -> None:
        scores = scores_of(model)
        with torch.no_grad():
            attentions(model)[0].qkv.weight.mul_(2)
        with pytest.warns(UserWarning, match="is not the one that the scores were calibrated on"):
            apply_hess(model, scores, sparse())

    @pytest.mark.parametrize(
        ("scores", "config", "kind", "message"),
        [
            (None, HeSSConfig(), ValueError, "allocation='hess' needs scores, got None"),
            (None, HeSSConfig(allocation="reverse"), ValueError, "allocation='reverse' needs scores"),
            ("co3d", HeSSConfig(), TypeError, "scores must be HeadScores, got 'co3d'"),
            (
                None,
                HeSSConfig(allocation="uniform", dense_layers=(0, 2)),
                ValueError,
                "dense_layers has 2, this model has 2 global layers; use 0 to 1",
            ),
        ],
    )
    def test_refused_before_anything_changes(
        self, model: nn.Module, scores: Any, config: HeSSConfig, kind: type[Exception], message: str
    ) -> None:
        before = tree(model)
        with pytest.raises(kind, match=message):
            apply_hess(model, scores, config)
        assert tree(model) == before

    def test_a_layer_without_scores_changes_nothing(self, model: nn.Module) -> None:
        scores, before = scores_of(model), tree(model)
        scores.scene_traces["points"][:, 1] = 0
        with pytest.raises(ValueError, match=r"fisher_trace\.points of global layer 1 is zero"):
            apply_hess(model, scores, sparse())
        assert tree(model) == before

    def test_unknown_family(self) -> None:
        with pytest.raises(ValueError, match="no backbone matches `Linear`; known: vggt, pi3"):
            apply_hess(nn.Linear(2, 2), None, UNIFORM)

    def test_forward_replaced_by_somebody_else(self, model: nn.Module) -> None:
        attn = attentions(model)[1]
        attn.forward = lambda *args, **kwargs: args[0]
        with pytest.raises(ValueError, match=r"the forward of \S+\.attn was replaced by .*lambda"):
            apply_hess(model, None, UNIFORM)

    def test_layers_called_without_the_model(self, model: nn.Module) -> None:
        apply_hess(model, None, UNIFORM)
        with pytest.raises(RuntimeError, match=r"has seen no images.*; call the model itself"):
            attentions(model)[0](torch.zeros(1, 6, 32))

    def test_images_that_are_none(self) -> None:
        model = build("pi3")
        apply_hess(model, None, UNIFORM)
        with pytest.raises(ValueError, match=r"images must be a tensor .* got NoneType"):
            model()


class TestRemove:
    def test_same_tree_state_and_outputs(self, model: nn.Module) -> None:
        before, dense = tree(model), outputs(model)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        handle = apply_hess(model, scores_of(model), sparse())
        outputs(model)
        handle.remove()
        assert tree(model) == before
        assert not hasattr(model, "hess")
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert same(outputs(model), dense)

    def test_context_manager_also_after_an_exception(self, model: nn.Module) -> None:
        before = tree(model)
        with pytest.raises(KeyError, match="mine"), apply_hess(model, None, UNIFORM):
            raise KeyError("mine")
        assert tree(model) == before

    def test_after_a_failed_forward(self, model: nn.Module) -> None:
        before, dense = tree(model), outputs(model)
        with (
            pytest.raises(ValueError, match="images contain NaN or infinity"),
            apply_hess(model, None, UNIFORM),
        ):
            model(images() * torch.nan)
        assert tree(model) == before
        assert same(outputs(model), dense)

    def test_a_second_call_does_nothing(self, model: nn.Module) -> None:
        first = apply_hess(model, None, UNIFORM)
        first.remove()
        second = apply_hess(model, None, UNIFORM)
        first.remove()
        assert model.hess is second
        with second:
            second.remove()
        assert not hasattr(model, "hess")

    def test_refuses_to_overwrite_what_came_later(self, model: nn.Module) -> None:
        handle = apply_hess(model, None, UNIFORM)
        name = next(iter(find_backbone(model).global_attentions(model)))
        parent, ours = model.get_submodule(name.removesuffix(".attn")), model.get_submodule(name)
        parent.attn = nn.Sequential(ours)
        before = tree(model)
        with pytest.raises(RuntimeError, match=f"{name} was replaced after apply_hess"):
            handle.remove()
        assert tree(model) == before
        parent.attn = ours
        handle.remove()
        assert not any(isinstance(module, HeSSAttention) for module in model.modules())

    def test_changes_made_meanwhile_stay(self, model: nn.Module) -> None:
        other = with_other_weights(model)
        expected = outputs(other.double(), images().double())
        with apply_hess(model, None, UNIFORM):
            model.double()
            model.load_state_dict(other.state_dict())
            model.train()
        assert all(module.training for module in model.modules())
        assert same(outputs(model.eval(), images().double()), expected)
