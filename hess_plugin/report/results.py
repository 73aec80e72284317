"""What a sweep found, by method and level: means, intervals, and differences to the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from ..errors import InputError
from ..scores import HeadScores
from ..sweep.methods import BASELINE, METHODS, Level
from ..sweep.records import SCORES, SettingRecord, SweepFolder
from .statistics import Estimate, estimate, p_value


@dataclass(frozen=True)
class Metric:
    """A column: its key in the records, its heading, and which way is better."""

    key: str
    heading: str
    higher_is_better: bool = False

    def format(self, value: float) -> str:
        return "n/a" if math.isnan(value) else f"{value:.4f}"

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value beats another."""
        return value > other if self.higher_is_better else value < other

    def verdict(self, difference: float, is_clear: bool) -> str:
        """ "better", "worse", or nothing where a difference may be chance."""
        if not is_clear:
            return ""
        return "better" if self.is_better(difference, 0) else "worse"


_AUC, _ATE = Metric("auc_30", "AUC@30", True), Metric("ate", "ATE")
_CLOUD = (Metric("chamfer", "Chamfer"), Metric("accuracy", "Acc."), Metric("completeness", "Comp."))
METRICS = {  # by protocol, the first is what figures show where they show one
    "scene": (_AUC, _ATE, *_CLOUD),
    "co3d-vggt": (_AUC, _ATE),
    "co3d-pi3": (_AUC, _ATE),
    "dtu-pi3": (*_CLOUD, Metric("normal_consistency", "NC", True)),
    "dtu-official": _CLOUD,
}


@dataclass(frozen=True)
class Cell:
    """One metric of one method at one level, over the scenes on which it and another were measured."""

    value: Estimate
    difference: Estimate  # to the other method, mostly the baseline, on the same scenes
    p: float  # of the difference; 1 for the method itself
    num_scenes: int


@dataclass(frozen=True)
class Sweep:
    """The records of a sweep folder."""

    name: str
    run: dict[str, Any]
    records: dict[str, dict[str, SettingRecord]]  # by scene and key
    scores: HeadScores  # that the methods used
    _cells: dict[Any, Cell | None] = field(default_factory=dict)  # tables and figures ask for the same ones

    @classmethod
    def read(cls, folder: Path) -> Self:
        """All records of a folder.

        Raises:
            InputError: it holds no sweep, or nothing was measured in it yet.
        """
        found = SweepFolder(folder)
        run = found.read_run()
        records = {scene_id: found.read(scene_id) for scene_id in run["scenes"]}
        if not any("dense" in of_scene for of_scene in records.values()):
            raise InputError(f"nothing was measured in {folder} yet; run hess sweep with the same --out.")
        return cls(folder.resolve().name, run, records, HeadScores.load(folder / SCORES / "own"))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The columns of its protocol."""
        return METRICS[self.run["protocol"]]

    @cached_property
    def levels(self) -> list[Level]:
        """All levels, by the baseline's density from dense to sparse."""
        keys = {key for of_scene in self.records.values() for key in of_scene}
        listed = [Level(**each["level"]) for each in self.run["settings"] if each["level"]]
        there = [level for level in dict.fromkeys(listed) if f"{BASELINE} @ {level.name}" in keys]
        return sorted(there, key=lambda level: -self.density(BASELINE, level))

    def methods(self, level: Level) -> list[str]:
        """The methods that were measured at a level, in their order of definition."""
        return [name for name in METHODS if self._scenes(name, level)]

    def density(self, method: str, level: Level | None) -> float:
        """Mean measured density."""
        found = [self._record(scene, method, level).density for scene in self._scenes(method, level)]
        return math.fsum(found) / len(found)

    def largest_gap(self, method: str, level: Level) -> float:
        """The largest difference of a scene's density from the baseline's."""
        gaps = (
            abs(record.density - record.target)
            for scene in self._scenes(method, level)
            if (record := self._record(scene, method, level)).target is not None
        )
        return max(gaps, default=0.0)

    def seconds(self, method: str, level: Level | None) -> Estimate | None:
        """Wall time of the forward pass; None if processes shared the device."""
        taken = [self._record(scene, method, level).seconds for scene in self._scenes(method, level)]
        timed = [seconds for seconds in taken if seconds is not None]
        return estimate(timed) if timed else None

    def peak_memory(self, method: str, level: Level | None) -> int:
        """The most that any scene took, bytes; 0 on a CPU."""
        return max(self._record(scene, method, level).peak_memory for scene in self._scenes(method, level))

    def cell(self, method: str, level: Level | None, metric: Metric, other: str = BASELINE) -> Cell | None:
        """A metric of a method, beside that of another at the same level.

        None where no scene has a value of both. Dense is compared with nothing.
        """
        key = (method, level, metric.key, other)
        if key not in self._cells:
            self._cells[key] = self._cell(method, level, metric, other)
        return self._cells[key]

    def _cell(self, method: str, level: Level | None, metric: Metric, other: str) -> Cell | None:
        values, paired, scenes = [], [], []
        for scene in self._scenes(method, level):
            value = self._record(scene, method, level).metrics.get(metric.key, math.nan)
            base = self.records[scene].get(f"{other} @ {level.name}") if level else None
            beside = value if level is None else base.metrics.get(metric.key, math.nan) if base else math.nan
            if math.isfinite(value) and math.isfinite(beside):
                values.append(value)
                paired.append(value - beside)
                scenes.append(scene)
        if not values:
            return None
        groups = self._groups(scenes)
        p = p_value(paired, groups) if any(paired) else 1.0
        return Cell(estimate(values, groups), estimate(paired, groups), p, len(values))

    @property
    def failures(self) -> dict[str, str]:
        """What could not be measured, and why."""
        return {
            f"{scene}, {key}": record.failure
            for scene, of_scene in self.records.items()
            for key, record in of_scene.items()
            if record.failure is not None
        }

    @property
    def num_views(self) -> int:
        """Views per scene; the most where protocols take all."""
        listed = (len(views) for views in self.run["scenes"].values() if views)
        return self.run["num_views"] or max(listed)

    @property
    def num_missing(self) -> int:
        """Settings that some scenes lack: the sweep was stopped, or extended on other scenes."""
        wanted = [each["key"] for each in self.run["settings"]]
        return sum(key not in of_scene for of_scene in self.records.values() for key in wanted)

    def _groups(self, scenes: list[str]) -> list[str] | None:
        """VGGT's protocol averages over categories."""
        if self.run["protocol"] != "co3d-vggt":
            return None
        return [scene.partition("/")[0] for scene in scenes]

    def _record(self, scene: str, method: str, level: Level | None) -> SettingRecord:
        return self.records[scene][method if level is None else f"{method} @ {level.name}"]

    def _scenes(self, method: str, level: Level | None) -> list[str]:
        key = method if level is None else f"{method} @ {level.name}"
        return [
            scene
            for scene, of_scene in self.records.items()
            if key in of_scene and of_scene[key].failure is None
        ]
