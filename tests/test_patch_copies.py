"""Patched models beside each other: two of them, copies, pickles, and one that is deleted."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from doubles import TINY_MODELS
from patching import attentions, build, patched, with_other_weights
from sidecars import images, outputs, same
from torch import nn

from hess_plugin.attention import HeSSAttention


@pytest.fixture(params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


class TestIndependence:
    def test_two_models(self, model: nn.Module) -> None:
        other = with_other_weights(model)
        dense = outputs(other)
        patched(model)
        mine = outputs(model)
        assert same(outputs(other), dense)
        patched(other)
        # interleaved, with other layouts
        small = images(views=2, size=12)
        theirs = outputs(other, small)
        assert same(outputs(model), mine)
        assert same(outputs(other, small), theirs)
        model.hess.remove()
        assert same(outputs(other, small), theirs)

    def test_deepcopy(self, model: nn.Module) -> None:
        dense = outputs(model)
        before = outputs(patched(model))
        twin = copy.deepcopy(model)
        assert same(outputs(twin), before)
        assert twin.hess is not model.hess
        with torch.no_grad():
            for attn in attentions(twin):
                attn.qkv.weight.mul_(1.5)
        assert same(outputs(model), before)
        assert not same(outputs(twin), before)
        outputs(twin, images(views=2, size=12))  # its own layout record
        assert same(outputs(model), before)
        twin.hess.remove()
        assert not any(isinstance(module, HeSSAttention) for module in twin.modules())
        assert same(outputs(model), before)
        model.hess.remove()
        assert same(outputs(model), dense)

    def test_deepcopy_of_one_layer_does_not_drag_the_model_along(self, model: nn.Module) -> None:
        patched(model)
        layer = copy.deepcopy(attentions(model)[0])
        assert len(pickle.dumps(layer)) < len(pickle.dumps(model)) / 3

    @pytest.mark.parametrize("how", ["pickle", "torch"])
    def test_pickle(self, model: nn.Module, how: str) -> None:
        dense = outputs(model)
        before = outputs(patched(model))
        loaded = _through_pickle(model) if how == "pickle" else _through_torch_save(model)
        assert same(outputs(loaded), before)
        assert torch.equal(loaded.hess.stats.density, model.hess.stats.density)
        loaded.hess.remove()
        assert same(outputs(loaded), dense)
        assert list(loaded.state_dict()) == list(model.state_dict())

    def test_deleting_the_model_frees_it_at_once(self, model: nn.Module) -> None:
        """A model and its handle in a circle would hold gigabytes until the garbage collector runs."""
        doomed = patched(with_other_weights(model))
        alive = weakref.ref(doomed)
        gc.disable()
        try:
            del doomed
            assert alive() is None
        finally:
            gc.enable()


def _through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _through_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
