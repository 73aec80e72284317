"""Importing this module teaches the original classes of the known families `hess=`, now or at their import.

    import hess_plugin.auto
    from vggt.models.vggt import VGGT

    model = VGGT.from_pretrained("facebook/VGGT-1B", hess="co3d")

Opt-in, because it places a finder in `sys.meta_path`; `disable()` takes everything back. Only the modules
listed are touched, and only by `hess_plugin.hub.register`: nothing is imported that the user does not import.

VGGT-Ω is missing from the list because it has no `from_pretrained`: its weights are a `.pt` file. Load it as
its authors say and call `hess_plugin.apply_hess(model, scores, config)`. StreamVGGT is on the list so that
`hess=` is answered: its attention cannot be made sparse, and that is said in words.
"""

from __future__ import annotations

import functools
import importlib.abc
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .hub import is_registered, register, unregister

KNOWN_CLASSES = {
    "vggt.models.vggt": "VGGT",
    "pi3.models.pi3": "Pi3",
    "pi3.models.pi3x": "Pi3X",
    "depth_anything_3.api": "DepthAnything3",
    "mapanything.models": "MapAnything",
    "streamvggt.models.streamvggt": "StreamVGGT",
}  # module -> class, of the original packages

_registered: list[type] = []


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: asks the finders after it and registers the class once the module has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in KNOWN_CLASSES:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    _register_after(spec)
                return spec
        return None


def _register_after(spec: ModuleSpec) -> None:
    """Wrap `exec_module` on the loader of this spec, for one run: spec and loader keep their types."""
    loader: Any = spec.loader
    run = loader.exec_module

    @functools.wraps(run)
    def exec_module(module: ModuleType) -> None:
        run(module)
        if module.__name__ == spec.name:  # the loader of a zip file serves other modules too
            if vars(loader).get("exec_module") is exec_module:
                del loader.exec_module
            _register_from(module)

    loader.exec_module = exec_module


def _register_from(module: ModuleType) -> None:
    cls = getattr(module, KNOWN_CLASSES[module.__name__], None)
    if cls is None or is_registered(cls):
        return
    try:
        _registered.append(register(cls))
    except TypeError as error:  # a fork of that name with another loader: its import must not fail
        warnings.warn(f"hess_plugin.auto: {error}", stacklevel=2)


_finder = _Finder()


def enable() -> None:
    """Register the known classes that are imported and watch for the others; called by the import."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for name in KNOWN_CLASSES:
        if name in sys.modules:
            _register_from(sys.modules[name])


def disable() -> None:
    """Take back `enable`: the finder, and every registration made here; those made by hand stay."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _registered:
        unregister(_registered.pop())


enable()
