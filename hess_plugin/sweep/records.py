"""What a sweep has measured: a file per scene, in it a record per setting; it can stop at any moment.

Files are compressed: a hundred scenes have over ten thousand records, which mostly say the same.
"""

from __future__ import annotations

import gzip
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, input_errors
from ..evaluation.run_file import RunFile
from ..files import finite, write_atomic

RUN_FILE, RECORDS, SCORES = "sweep.json", "records", "scores"
FORMAT = 1
WRITE_EVERY = 5.0  # seconds; each time all of a scene is written
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, ValueError, KeyError, TypeError, AttributeError)
_OPTIONAL = ("other_scores", "gates")  # some methods need them, so that not every call has them
# May change between calls.
_NOT_IDENTITY = ("commands", "scenes", "settings", "scores", *_OPTIONAL)


@dataclass(frozen=True)
class SettingRecord:
    """One setting on one scene."""

    asked: dict[str, Any]  # setting before matching, scores, target, views: decides whether it is cached
    config: dict[str, Any] | None = None  # as it ran; None: dense
    density: float = 1.0
    target: float | None = None  # the baseline's density, None for dense and the baseline itself
    attempts: int = 1  # forward passes until the density was met
    seconds: float | None = None  # of the forward pass; None: the device was shared by processes
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
        merged["commands"] = list(dict.fromkeys([*before.get("commands", ()), *run["commands"]]))
        merged |= {name: run.get(name) or before.get(name) for name in _OPTIONAL}
        self._run_file.begin(merged, _NOT_IDENTITY)

    def read_run(self) -> dict[str, Any]:
        """Content of `sweep.json`; InputError if there is none that can be read."""
        return self._run_file.read()

    def read(self, scene_id: str) -> dict[str, SettingRecord]:
        """The records of a scene by the key of the setting; those of a damaged file count as not measured."""
        try:
            content = json.loads(gzip.decompress(self._file(scene_id).read_bytes()))
            return {key: SettingRecord(**_with_nan(values)) for key, values in content.items()}
        except (FileNotFoundError, *_DAMAGED):
            return {}

    def write(self, scene_id: str, records: dict[str, SettingRecord]) -> None:
        """Keep the records of a scene; the file holds the old ones or the new, never a part."""
        content = {key: finite(_rounded(asdict(record))) for key, record in records.items()}
        path = self._file(scene_id)
        with input_errors(OSError, prefix=f"cannot write {path}: "):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a time, so that equal records are equal bytes.
            write_atomic(path, gzip.compress(json.dumps(content, allow_nan=False).encode(), mtime=0))

    @contextmanager
    def kept(
        self, scene_id: str, records: dict[str, SettingRecord]
    ) -> Iterator[Callable[[str, SettingRecord], None]]:
        """A function that adds to the records of a scene; they are written now and then, and at the end.

        At the end also of an interrupted block; of one that is killed the last seconds are lost.
        """
        written, unwritten = time.monotonic(), False

        def keep(key: str, record: SettingRecord) -> None:
            nonlocal written, unwritten
            records[key], unwritten = record, True
            if time.monotonic() - written > WRITE_EVERY:
                self.write(scene_id, records)
                written, unwritten = time.monotonic(), False

        try:
            yield keep
        finally:
            if unwritten:
                self.write(scene_id, records)

    def _file(self, scene_id: str) -> Path:
        return self.path / RECORDS / f"{scene_id}.json.gz"


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    """Metrics with seven digits: those of the float32 predictions that they are of."""
    return record | {"metrics": {name: float(f"{value:.7g}") for name, value in record["metrics"].items()}}


def _with_nan(record: dict[str, Any]) -> dict[str, Any]:
    """A metric without a value is null in the file."""
    metrics = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
    return record | {"metrics": metrics}
