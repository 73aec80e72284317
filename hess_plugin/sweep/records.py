"""What a sweep has measured: a file per scene, in it a record per setting; it can stop at any moment."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, input_errors
from ..evaluation.run_file import RunFile
from ..files import finite, write_atomic

RUN_FILE, RECORDS, SCORES = "sweep.json", "records", "scores"
FORMAT = 1
# May change between calls.
_NOT_IDENTITY = ("command", "scenes", "settings", "scores", "other_scores", "gates")


@dataclass(frozen=True)
class SettingRecord:
    """One setting on one scene."""

    asked: dict[str, Any]  # setting before matching, scores, target, views: decides whether it is cached
    config: dict[str, Any] | None = None  # as it ran; None: dense
    density: float = 1.0
    target: float | None = None  # the baseline's density, None for dense and the baseline itself
    attempts: int = 1  # forward passes until the density was met
    seconds: float = 0.0  # of the forward pass
    peak_memory: int = 0  # bytes on the GPU during the pass; 0 on a CPU
    metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None  # why there are no metrics


@dataclass(frozen=True)
class SweepFolder:
    """The records of one sweep."""

    path: Path

    @property
    def _run_file(self) -> RunFile:
        return RunFile(self.path / RUN_FILE, FORMAT, "records of a sweep", "hess sweep")

    def begin(self, run: dict[str, Any]) -> None:
        """Make the folder for a sweep, or go on with it; other settings, methods and scenes may be added.

        Raises:
            InputError: the folder holds records of another model, dataset or machine, or of other views of
                one of the scenes, or cannot be written.
        """
        before = self.read_run() if (self.path / RUN_FILE).exists() else {"scenes": {}, "settings": []}
        scenes = before["scenes"] | run["scenes"]
        changed = [scene_id for scene_id, views in before["scenes"].items() if scenes[scene_id] != views]
        if changed:
            raise InputError(
                f"{self.path} holds records of other views of {changed[0]}, and of {len(changed)} scenes in "
                "all; choose another --out, or options that take the same views."
            )
        settings = {each["key"]: each for each in (*before["settings"], *run["settings"])}
        merged = run | {"scenes": scenes, "settings": list(settings.values())}
        self._run_file.begin(merged, _NOT_IDENTITY)

    def read_run(self) -> dict[str, Any]:
        """Content of `sweep.json`; InputError if there is none that can be read."""
        return self._run_file.read()

    def read(self, scene_id: str) -> dict[str, SettingRecord]:
        """The records of a scene by the key of the setting; those of a damaged file count as not measured."""
        try:
            content = json.loads(self._file(scene_id).read_text(encoding="utf-8"))
            return {key: SettingRecord(**_with_nan(values)) for key, values in content.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def write(self, scene_id: str, records: dict[str, SettingRecord]) -> None:
        """Keep the records of a scene; the file holds the old ones or the new, never a part."""
        content = {key: finite(asdict(record)) for key, record in records.items()}
        path = self._file(scene_id)
        with input_errors(OSError, prefix=f"cannot write {path}: "):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(content, allow_nan=False).encode())

    def _file(self, scene_id: str) -> Path:
        return self.path / RECORDS / f"{scene_id}.json"


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    """A metric without a value is null in the file."""
    metrics = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
    return record | {"metrics": metrics}
