"""`import hess_plugin.auto`: the original classes learn `hess=` whenever they are imported."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from sidecars import scores_of

from hess_plugin import register, unregister
from hess_plugin.errors import InputError
from hess_plugin.hub import is_registered

VGGT = "from doubles import TinyVGGT\n\n\nclass VGGT(TinyVGGT):\n    pass\n"
PI3 = "from doubles import TinyPi3\n\n\nclass Pi3(TinyPi3):\n    pass\n"
FAMILY = {
    "vggt.models.vggt": VGGT,
    "pi3.models.pi3": PI3,
    "pi3.models.pi3x": "from doubles_family import TinyPi3X\n\n\nclass Pi3X(TinyPi3X):\n    pass\n",
    "depth_anything_3.api": "from doubles_views import TinyDepthAnything3\n\n\n"
    "class DepthAnything3(TinyDepthAnything3):\n    pass\n",
    "mapanything.models": "from doubles_views import TinyMapAnything\n\n\n"
    "class MapAnything(TinyMapAnything):\n    pass\n",
    "streamvggt.models.streamvggt": "from doubles_family import TinyStreamVGGT\n\n\n"
    "class StreamVGGT(TinyStreamVGGT):\n    pass\n",
}


@pytest.fixture
def auto():
    """hess_plugin.auto, enabled; disabled at the end, as every other test expects."""
    module = importlib.import_module("hess_plugin.auto")
    module.enable()
    yield module
    module.disable()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(module, source): a package on sys.path that is forgotten at the end of the test."""

    def forget() -> None:
        packages = {name.split(".")[0] for name in FAMILY}
        for name in [name for name in sys.modules if name.split(".")[0] in packages]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(module: str, source: str) -> Path:
        path = tmp_path / Path(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        importlib.invalidate_caches()
        return path

    forget()
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    forget()


def load(module: str):
    return importlib.import_module(module)


@pytest.mark.parametrize("module", FAMILY)
def test_imported_later(auto, write, tmp_path, module):
    assert set(auto.KNOWN_CLASSES) == set(FAMILY)
    write(module, FAMILY[module])
    cls = getattr(load(module), auto.KNOWN_CLASSES[module])
    assert is_registered(cls)
    model = cls()
    model.save_pretrained(tmp_path / "model")
    scores = scores_of(model)
    if cls.__name__ == "StreamVGGT":
        with pytest.raises(ValueError, match="streamvggt cannot have sparse attention"):
            cls.from_pretrained(tmp_path / "model", hess=scores)
    else:
        assert cls.from_pretrained(tmp_path / "model", hess=scores).hess.scores is scores


def test_a_package_of_that_name(auto, write):
    """`mapanything.models` is a folder whose `__init__` imports the class from further down."""
    write("mapanything.__init__", "")
    write("mapanything.models.model", FAMILY["mapanything.models"])
    write("mapanything.models.__init__", "from .model import MapAnything\n")
    assert is_registered(load("mapanything.models.model").MapAnything)


def test_registered_depth_anything_swallows_nothing(auto, write, tmp_path):
    """Its `__init__` takes any keyword: dense without a word, and `hess` in the config, if not registered."""
    write("depth_anything_3.api", FAMILY["depth_anything_3.api"])
    cls = load("depth_anything_3.api").DepthAnything3
    original = cls()
    original.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="nowhere"):
        cls.from_pretrained(tmp_path / "model", hess=tmp_path / "nowhere")
    model = cls.from_pretrained(tmp_path / "model", hess=scores_of(original))
    model.save_pretrained(tmp_path / "again")
    assert "hess" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert cls.from_pretrained(tmp_path / "again", hess=True).hess.scores.info.dataset == "toy"
    auto.disable()
    assert not hasattr(cls.from_pretrained(tmp_path / "again", hess=True), "hess")


def test_imported_before(auto, write):
    auto.disable()
    write("vggt.models.vggt", VGGT)
    cls = load("vggt.models.vggt").VGGT
    assert not is_registered(cls)
    auto.enable()
    assert is_registered(cls)


def test_class_and_spec_are_intact(auto, write):
    path = write("vggt.models.vggt", VGGT)
    module = load("vggt.models.vggt")
    assert pickle.loads(pickle.dumps(module.VGGT)) is module.VGGT
    assert module.__spec__.name == "vggt.models.vggt"
    assert module.__spec__.origin == module.__file__ == str(path)
    assert type(module.__spec__.loader) is SourceFileLoader
    assert "exec_module" not in vars(module.__spec__.loader)
    assert inspect.getsource(module) == VGGT


def test_reload(auto, write):
    write("vggt.models.vggt", VGGT)
    module = load("vggt.models.vggt")
    first = module.VGGT
    importlib.reload(module)
    assert module.VGGT is not first
    assert is_registered(module.VGGT)


def test_zip_file(auto, write, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "packages.zip", "w") as file:
        for module, source in (("vggt.models.vggt", VGGT), ("pi3.models.pi3", PI3)):
            package = module.split(".")[0]
            for name in (f"{package}/__init__.py", f"{package}/models/__init__.py"):
                file.writestr(name, "")
            file.writestr(module.replace(".", "/") + ".py", source)
        file.writestr("vggt/models/other.py", VGGT)
    monkeypatch.syspath_prepend(tmp_path / "packages.zip")
    importlib.util.find_spec("vggt.models.vggt")  # found, not yet run; its loader serves the whole folder
    assert not is_registered(load("vggt.models.other").VGGT)
    assert is_registered(load("pi3.models.pi3").Pi3)
    assert is_registered(load("vggt.models.vggt").VGGT)


def test_disable(auto, write):
    write("vggt.models.vggt", VGGT)
    write("pi3.models.pi3", PI3)
    vggt = load("vggt.models.vggt").VGGT
    auto.disable()
    by_hand = register(load("pi3.models.pi3").Pi3)
    auto.enable()
    auto.enable()
    assert sum(type(finder).__module__ == "hess_plugin.auto" for finder in sys.meta_path) == 1
    auto.disable()
    assert not any(type(finder).__module__ == "hess_plugin.auto" for finder in sys.meta_path)
    assert not is_registered(vggt)
    assert is_registered(by_hand)
    unregister(by_hand)


def test_other_modules_are_left_alone(auto, write):
    write("vggt.models.other", VGGT)
    assert not is_registered(load("vggt.models.other").VGGT)
    with pytest.raises(ModuleNotFoundError, match=r"vggt\.models\.vggt"):
        load("vggt.models.vggt")


def test_fork_without_the_class(auto, write):
    write("vggt.models.vggt", "class Other:\n    pass\n")
    assert load("vggt.models.vggt").Other


def test_fork_with_another_loader(auto, write):
    write("vggt.models.vggt", "from torch import nn\n\n\nclass VGGT(nn.Module):\n    pass\n")
    with pytest.warns(UserWarning, match="neither a ModelHubMixin nor"):
        cls = load("vggt.models.vggt").VGGT
    assert not is_registered(cls)


def test_import_that_fails(auto, write):
    path = write("vggt.models.vggt", "raise RuntimeError('broken')\n")
    with pytest.raises(RuntimeError, match="broken"):
        load("vggt.models.vggt")
    path.write_text(VGGT)
    assert is_registered(load("vggt.models.vggt").VGGT)
