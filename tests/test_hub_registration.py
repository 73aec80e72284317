"""register and unregister: once, exactly undone, safe in threads, refused where there is no loader."""

from __future__ import annotations

import threading

import pytest
import torch
from doubles import TinyVGGT
from sidecars import BASE, publish
from torch import nn

from hess_plugin import Pi3Model, VggtModel, register, unregister
from hess_plugin.hub import is_registered


def test_undone_exactly():
    for cls in (TinyVGGT, type("Child", (VggtModel,), {})):
        before = dict(cls.__dict__)
        assert register(cls) is register(cls) is cls
        assert is_registered(cls)
        assert dict(cls.__dict__) != before
        assert unregister(cls) is unregister(cls) is cls
        assert dict(cls.__dict__) == before


def test_own_methods_come_back():
    class Own(TinyVGGT):
        @classmethod
        def _from_pretrained(cls, **kwargs):
            return super()._from_pretrained(**kwargs)

        def _save_pretrained(self, save_directory):
            super()._save_pretrained(save_directory)

    before = dict(Own.__dict__)
    unregister(register(Own))
    assert dict(Own.__dict__) == before


def test_parent_and_child(hub, tmp_path):
    torch.manual_seed(0)
    model = TinyVGGT()
    publish(hub, BASE, model, tmp_path, "co3d")
    child = type("Child", (TinyVGGT,), {})
    try:
        register(register(child) and TinyVGGT)
        assert child.from_pretrained(BASE, hess="co3d").hess is not None
        unregister(TinyVGGT)
        assert child.from_pretrained(BASE, hess="co3d").hess is not None
        with pytest.raises(TypeError, match="unexpected keyword argument 'hess'"):
            TinyVGGT.from_pretrained(BASE, hess="co3d")
    finally:
        unregister(TinyVGGT)


def test_threads():
    before = dict(TinyVGGT.__dict__)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        register(TinyVGGT)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    unregister(TinyVGGT)
    assert dict(TinyVGGT.__dict__) == before


@pytest.mark.parametrize("cls", [nn.Linear, dict])
def test_refuses_others(cls):
    with pytest.raises(TypeError, match=r"neither a ModelHubMixin nor .*apply_hess\(model, scores, config\)"):
        register(cls)
    assert not is_registered(cls)


def test_native_classes_are_registered():
    assert is_registered(VggtModel)
    assert is_registered(Pi3Model)
    assert not is_registered(TinyVGGT)
