"""What is compared: each method is a change to `HeSSConfig` or to the scores, or a baseline of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..baselines.choice import BaselineName
from ..config import HeSSConfig
from ..datasets.base import draw
from ..errors import InputError
from ..gates import HeadGates
from ..scores import HeadScores

BASELINE = "uniform"  # sets the density that the others are matched to, and is what differences are taken to


@dataclass(frozen=True)
class Method:
    """One line of a comparison."""

    name: str
    label: str  # for people
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the fields of `HeSSConfig`
    num_scenes: int | None = None  # use so many of the calibration scenes; None: all
    swapped: bool = False  # use the scores of another calibration set
    baseline: BaselineName | None = None  # of `hess_plugin.baselines`, if it is one

    def scores(self, own: HeadScores, other: HeadScores | None) -> HeadScores | None:
        """The scores that it uses; None if there are none such."""
        if self.swapped:
            return other
        if self.num_scenes is None:
            return own
        if self.num_scenes > len(own.info.scene_ids):
            return None
        # A larger number holds the smaller ones, so that sizes differ by what is added.
        drawn = draw(list(own.info.scene_ids), 0, "calibration size")[: self.num_scenes]
        return own.of_scenes(sorted(drawn))

    def is_possible(self, own: HeadScores, other: HeadScores | None, gates: HeadGates | None) -> bool:
        """Whether its scores are there: another set, enough scenes, traces of the projection, or gates."""
        if self.baseline is not None:
            return self.baseline == "merging" or gates is not None
        scores = self.scores(own, other)
        return scores is not None and self.changes.get("projection", "query") in scores.info.projections


_UNIFORM = {"allocation": "uniform"}
METHODS = {
    method.name: method
    for method in (
        Method("dense", "dense"),
        Method(BASELINE, "uniform (SparseVGGT)", _UNIFORM),
        Method("uniform-cdf", "uniform, public CDF rule", _UNIFORM | {"cdf_rule": "sparse-vggt"}),
        Method("uniform-keys", "uniform, special keys by chance", _UNIFORM | {"special_keys": "sparse-vggt"}),
        Method(
            "uniform-public",
            "uniform, both as the public code",
            _UNIFORM | {"cdf_rule": "sparse-vggt", "special_keys": "sparse-vggt"},
        ),
        Method("hess", "HeSS"),
        Method("reverse", "reverse HeSS", {"allocation": "reverse"}),
        Method("shuffled", "shuffled HeSS", {"allocation": "shuffled"}),
        Method("lambda-0", "λ = 0 (points only)", {"camera_weight": 0.0}),
        Method("lambda-0.5", "λ = 0.5", {"camera_weight": 0.5}),
        Method("lambda-1", "λ = 1 (camera only)", {"camera_weight": 1.0}),
        Method("key", "W_K", {"projection": "key"}),
        Method("value", "W_V", {"projection": "value"}),
        Method("linear", "linear", {"normalization": "linear"}),
        Method("softmax", "softmax", {"normalization": "softmax"}),
        Method("log", "log", {"normalization": "log"}),
        Method("no-capping", "surplus dropped", {"surplus": "drop"}),
        Method("michel", "head pruning (Michel et al.)", baseline="michel"),
        Method("kwon", "head pruning (Kwon et al.)", baseline="kwon"),
        Method("merging", "token merging (FastVGGT)", baseline="merging"),
        Method("swapped", "other calibration set", swapped=True),
        *(Method(f"scenes-{n}", f"calibrated on {n}", num_scenes=n) for n in (1, 5, 10, 20, 40)),
    )
}


@dataclass(frozen=True)
class Level:
    """How sparse: the setting of the baseline, whose measured density all methods then meet."""

    sparse_ratio: float
    cdf_threshold: float = 0.0

    @property
    def name(self) -> str:
        """Such as "0.8/0.4", or "density 0.25" where the ratio alone is set."""
        if self.cdf_threshold == 0:
            return f"density {1 - self.sparse_ratio:.6g}"
        return f"{self.sparse_ratio:g}/{self.cdf_threshold:g}"

    def config(self, method: Method, scores: HeadScores, shuffle_seed: int, base: HeSSConfig) -> HeSSConfig:
        """The method's setting at this level, before its density is matched; λ is written out."""
        values = {"camera_weight": scores.info.camera_weight, **method.changes}
        if values.get("allocation") == "uniform":  # reads no scores; None, so that equal settings are equal
            values["camera_weight"] = None
        if values.get("allocation") == "shuffled":
            values["shuffle_seed"] = shuffle_seed
        return replace(base, sparse_ratio=self.sparse_ratio, cdf_threshold=self.cdf_threshold, **values)


def density_level(density: float) -> Level:
    """The level of a density; InputError unless it is in (0, 1]."""
    if not (math.isfinite(density) and 0 < density <= 1):
        raise InputError(f"a density must be above 0 and at most 1, got {density}.")
    return Level(round(1 - density, 12))
