"""Datasets, each yielding `Scene`."""

from .folder import load_scene
from .scene import Scene
from .synthetic import synthetic_scene

__all__ = ["Scene", "load_scene", "synthetic_scene"]
