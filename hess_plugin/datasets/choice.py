"""A dataset as a command names it: checked before any model is loaded, opened for the model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import DATASETS, Dataset, open_dataset
from .base import draw

IMAGE_WIDTH = 518  # pixels, for a model that does not name its own; rounded down to whole patches
_OPTIONS = {  # what commands offer of the datasets
    "co3d": ("subset", "exclude", "categories", "min_quality", "with_background"),
    "dtu": ("scans", "light"),
}


@dataclass(frozen=True)
class DatasetChoice:
    """A dataset, where it lies, and how it is read.

    Raises:
        InputError: an unknown dataset, a root that is missing or not wanted, or an option of another dataset.
    """

    name: str  # one of DATASETS
    root: Path | None = None  # of the dataset; None for "synthetic"
    image_width: int | None = None  # pixels; None: the model's own
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset, see _OPTIONS

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise InputError(f"unknown dataset {self.name!r}; known: {', '.join(DATASETS)}.")
        if self.root is None and self.name != "synthetic":
            raise InputError(f"--dataset {self.name} needs --root, the folder of the data.")
        if self.root is not None and self.name == "synthetic":
            raise InputError("--dataset synthetic reads no files; leave --root out.")
        if self.root is not None and not self.root.is_dir():
            raise InputError(f"there is no folder {self.root}; give --root the folder of {self.name}.")
        known = _OPTIONS.get(self.name, ())
        unknown = [f"--{name.replace('_', '-')}" for name in self.options if name not in known]
        if unknown:
            raise InputError(f"{unknown[0]} is no option of --dataset {self.name}; leave it out.")

    def open(self, patch_size: int, own_width: int | None, min_views: int, **more: Any) -> Dataset:
        """The dataset for a model.

        Args:
            patch_size: of the model, pixels.
            own_width: of the photos that the model was made for, pixels; None: it names none.
            min_views: scenes with fewer are skipped.
            more: options of the dataset that no command line names, such as `with_cloud`.
        """
        width = (own_width or IMAGE_WIDTH) // patch_size * patch_size
        return open_dataset(
            self.name,
            root=self.root,
            image_width=width if self.image_width is None else self.image_width,
            patch_size=patch_size,
            min_views=min_views,
            **self.options,
            **more,
        )


def choose_others(dataset: Dataset, num_scenes: int, seed: int, excluded: Collection[str]) -> list[str]:
    """Ids of so many scenes drawn by seed, sorted, none of those excluded; all that are left if not more.

    Without exclusions the same as `Dataset.choose`. Scenes that scores were calibrated on say nothing about
    other scenes.
    """
    drawn = dataset.choose(num_scenes + len(excluded), seed)
    left = [scene_id for scene_id in drawn if scene_id not in set(excluded)]
    return sorted(draw(left, seed, dataset.name)[:num_scenes])
