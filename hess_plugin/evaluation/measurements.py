"""Measured numbers as a file: what was measured, on what, at which density, printed by which command."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..config import Checked
from ..errors import input_errors


@dataclass(frozen=True, kw_only=True)
class Measurement(Checked):
    """One mean over scenes. A file of measurements is a JSON list of objects with exactly these keys."""

    dataset: str  # of the scenes
    method: str  # "hess" for the scores themselves; "dense", "uniform", ... for what they are compared with
    metric: str  # "auc_30", "ate", "point_error", ...
    value: float  # finite: what could not be measured has no record
    density: float  # measured share of attention blocks that were attended, mean over scenes
    num_scenes: int
    num_views: int  # per scene
    command: str  # that prints this value

    def __post_init__(self) -> None:
        for name in ("dataset", "method", "metric", "command"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name} must be a text, got {getattr(self, name)!r}.")
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not number or not math.isfinite(self.value):
            raise ValueError(f"value must be a finite number, got {self.value!r}.")
        self._in_unit_interval("density")
        self._positive_int("num_scenes", "num_views")


def write_measurements(path: str | os.PathLike[str], measurements: Iterable[Measurement]) -> None:
    """Write a file of measurements; a file that is there is replaced."""
    records = [dataclasses.asdict(each) for each in measurements]
    Path(path).write_text(json.dumps(records, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_measurements(path: str | os.PathLike[str]) -> list[Measurement]:
    """Read a file of measurements.

    Raises:
        InputError: no such file, not such a list, a key that is unknown or missing, an impossible value;
            names the file and the record, counted from 1.
    """
    with input_errors(OSError, ValueError, prefix=f"{path}: "):
        records = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(records, list) or not records:
            raise ValueError("must hold a JSON list of measurements, at least one.")
    measurements = []
    for number, record in enumerate(records, start=1):
        with input_errors(ValueError, prefix=f"{path}, record {number}: "):
            measurements.append(_from_record(record))
    return measurements


def _from_record(record: object) -> Measurement:
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, got {record!r}.")
    missing = [each.name for each in dataclasses.fields(Measurement) if each.name not in record]
    if missing:
        raise ValueError(f"lacks the key{'s' * (len(missing) > 1)} {', '.join(missing)}.")
    return Measurement.from_dict(record)
