"""`hess=` on classes with the mixin loader: the traps of that loader. The map of traps is in test_hub.py."""

from __future__ import annotations

import json

import pytest
import torch
from doubles import TinyVGGT
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file
from sidecars import BASE, outputs, publish, same, scores_of, sparse
from torch import nn

import hess_plugin
from hess_plugin import apply_hess, register, unregister


class Swallowing(TinyVGGT):
    """Like a loader class that hands every unknown argument on."""

    def __init__(self, embed_dim: int = 32, **kwargs: object) -> None:
        super().__init__(embed_dim=embed_dim)
        self.swallowed = kwargs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyVGGT().eval()


@pytest.fixture
def registered():
    """register(cls), undone at the end of the test."""
    classes = []

    def teach(cls: type) -> type:
        classes.append(cls)
        return register(cls)

    yield teach
    for cls in classes:
        unregister(cls)


def test_unregistered_fixed_arguments(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"TinyVGGT.* unexpected keyword argument 'hess'"):
        TinyVGGT.from_pretrained(tmp_path, hess="co3d")


def test_unregistered_kwargs_swallow_it(tmp_path):
    """What cannot be helped from outside; the function of hess_plugin serves such a class all the same."""
    model = Swallowing()
    model.save_pretrained(tmp_path)
    loaded = Swallowing.from_pretrained(tmp_path, hess="co3d")
    assert loaded.swallowed == {"hess": "co3d"}
    assert not hasattr(loaded, "hess")
    loaded = hess_plugin.from_pretrained(Swallowing, tmp_path, hess=scores_of(model))
    assert loaded.swallowed == {}
    assert loaded.hess.scores is not None


def test_registered_kwargs_do_not_see_it(registered, tmp_path):
    model = registered(Swallowing)()
    scores_of(model).save(tmp_path / "first" / "hess" / "toy")
    model.save_pretrained(tmp_path / "first")
    loaded = Swallowing.from_pretrained(tmp_path / "first", hess="toy")
    assert loaded.swallowed == {}
    loaded.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "config.json").read_text()) == {"embed_dim": 32}


def test_subclass_still_gets_its_config(registered, model, tmp_path):
    """The mixin reads the signature of `_from_pretrained`: without functools.wraps `config` would be None."""

    class Configured(TinyVGGT):
        @classmethod
        def _from_pretrained(cls, *, config: dict | None = None, **kwargs: object) -> TinyVGGT:
            loaded = super()._from_pretrained(**kwargs)
            loaded.seen = config
            return loaded

    class Child(registered(Configured)):
        pass

    assert Child._hub_mixin_inject_config
    model.save_pretrained(tmp_path)
    loaded = Child.from_pretrained(tmp_path, hess=scores_of(model))
    assert loaded.seen["embed_dim"] == 32
    assert loaded.hess is not None


def test_strict(registered, model, tmp_path):
    """By default the mixin leaves random weights where a key was renamed: what we save loads strictly."""
    apply_hess(registered(TinyVGGT) and model, scores_of(model), sparse())
    model.save_pretrained(tmp_path)
    loaded = TinyVGGT.from_pretrained(tmp_path, hess=sparse(True), strict=True)
    assert same(outputs(loaded), outputs(model))
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"base.{name}": weight for name, weight in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        TinyVGGT.from_pretrained(tmp_path, strict=True)


def test_unregistered_class_ignores_the_sidecar(hub, registered, model, tmp_path):
    registered(TinyVGGT)
    publish(hub, BASE, model, tmp_path, "co3d", root="root")
    unregister(TinyVGGT)
    assert same(outputs(TinyVGGT.from_pretrained(BASE)), outputs(model))


def test_one_commit(hub, registered, model):
    apply_hess(registered(TinyVGGT) and model, scores_of(model), sparse())
    model.push_to_hub("tester/pushed")
    assert sum("/commit/main" in call for call in hub.calls()) == 1


def test_touch_points():
    """What registration relies on in huggingface_hub beyond its documentation."""

    class Bare(nn.Module, PyTorchModelHubMixin):
        pass

    assert isinstance(Bare.__mro__[2].__dict__["_from_pretrained"], classmethod)
    assert callable(Bare._save_pretrained)
    assert Bare._hub_mixin_inject_config is False
