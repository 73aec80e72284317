"""Head-sensitivity-guided sparse attention (HeSS) for VGGT-family models.

Every public name is imported when it is first used, so that importing the package costs nothing and has no
effect on other libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CalibrationConfig as CalibrationConfig
    from .config import HeSSConfig as HeSSConfig
    from .hub import from_pretrained as from_pretrained
    from .hub import register as register
    from .hub import unregister as unregister
    from .low_memory import save_memory as save_memory
    from .models import Pi3Config as Pi3Config
    from .models import Pi3ImageProcessor as Pi3ImageProcessor
    from .models import Pi3Model as Pi3Model
    from .models import VggtConfig as VggtConfig
    from .models import VggtImageProcessor as VggtImageProcessor
    from .models import VggtModel as VggtModel
    from .patch import apply_hess as apply_hess
    from .processor import HeSSAttentionProcessor as HeSSAttentionProcessor
    from .scores import HeadScores as HeadScores

    __version__: str

_HOME = {
    "CalibrationConfig": "config",
    "HeSSConfig": "config",
    "HeadScores": "scores",
    "HeSSAttentionProcessor": "processor",
    "Pi3Config": "models",
    "Pi3ImageProcessor": "models",
    "Pi3Model": "models",
    "VggtConfig": "models",
    "VggtImageProcessor": "models",
    "VggtModel": "models",
    "apply_hess": "patch",
    "from_pretrained": "hub",
    "register": "hub",
    "save_memory": "low_memory",
    "unregister": "hub",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hess-plugin")
    if name not in _HOME:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}."
        )
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
