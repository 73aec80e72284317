"""Small scenes for runs of calibration: fast, with scenes that fail and bugs where a test wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from hess_plugin.config import CalibrationConfig
from hess_plugin.datasets import Dataset, Scene, synthetic_scene

CONFIG = CalibrationConfig(
    num_scenes=5, num_views=3, max_points=50, icp=False, min_fitness=0, inlier_radius=1.0
)  # random weights fit nothing, so no fitness is asked for


class ToyDataset(Dataset):
    """Five scenes "toy/0" to "toy/4" of 16 x 16 pixels.

    Args:
        raises: what to raise in place of a scene.
    """

    name: ClassVar[str] = "toy"

    def __init__(self, raises: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(image_width=16, patch_size=4)
        self.raises = raises or {}
        self.loaded: list[str] = []

    def scene_ids(self) -> list[str]:
        return [f"toy/{index}" for index in range(5)]

    def load(self, scene_id: str, num_views: int | None, seed: int) -> Scene:
        self.loaded.append(scene_id)
        if scene_id in self.raises:
            raise self.raises[scene_id]
        scene = synthetic_scene(int(scene_id[-1]) + 100 * seed, num_views or 3, image_size=16)
        return replace(scene, name=scene_id)
