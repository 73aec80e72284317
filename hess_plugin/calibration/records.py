"""What a calibration has measured: a file per scene, so that it can be stopped and go on with more scenes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError, input_errors
from ..files import write_atomic
from ..scores import CONFIG_FILE

RECORD_FORMAT = 2  # part of every key: records of another format are those of another run
ROOT = "dataset_root"  # where a run keeps the folder of its data
_PREFIX, _RUN_FILE, _RECORD = ".calibration-", "run.json", "record"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneRecord:
    """What became of one scene."""

    scene_id: str
    seconds: float  # for both errors; reading the scene's files goes on beside it
    peak_memory: int  # bytes: of the GPU for this scene, on a CPU of the process so far
    failure: str | None = None  # why there are no traces
    view_ids: tuple[str, ...] = ()  # in the order in which the model saw them
    unusable_views: dict[str, str] = field(default_factory=dict)  # drawn, but passed over: why
    report: dict[str, float] = field(default_factory=dict)  # of `SceneTraces`
    traces: dict[str, Tensor] = field(default_factory=dict)  # of `SceneTraces`, each [L, H] float64

    def described(self) -> dict[str, Any]:
        """All but the traces, as JSON values."""
        return asdict(self) | {"view_ids": list(self.view_ids), "traces": sorted(self.traces)}


@dataclass(frozen=True)
class RecordFolder:
    """The records of one run, in a hidden folder of `out` whose name is a hash of all that decides a record.

    Which scenes a run has decides no record, so runs with more or fewer scenes share the folder.

    Attributes:
        out: folder for the scores.
        run: the model's fingerprint, scenes and settings, as JSON; its "scene_ids" are in the order of rows.
    """

    out: Path
    run: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where the records are."""
        text = json.dumps({"record_format": RECORD_FORMAT} | self.settings, sort_keys=True)
        return self.out / f"{_PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def settings(self) -> dict[str, Any]:
        """The run without its scenes: what decides the record of a scene."""
        return {name: value for name, value in self.run.items() if name != "scene_ids"}

    @property
    def scene_ids(self) -> list[str]:
        """All scenes of the run."""
        return self.run["scene_ids"]

    def open(self, keep_failed: bool) -> list[str]:
        """Make the folder and return the scenes that are still to be measured.

        Args:
            keep_failed: whether a scene that failed before is done, or tried again.

        Raises:
            InputError: there are records, but those of a run with other settings.
        """
        if not self.path.exists():
            for other in record_folders(self.out):
                difference = _difference(other, self.settings)
                link = " (if the data moved, with a link in its old place)" if ROOT in difference else ""
                raise InputError(
                    f"{other} holds records of another calibration, which differs in {difference}; "
                    f"resume it as it was started{link}, or remove the folder."
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._describe(self.settings)
        return [scene_id for scene_id in self.scene_ids if not self._is_done(scene_id, keep_failed)]

    def write(self, record: SceneRecord) -> None:
        """Keep what became of a scene; the file appears whole or not at all."""
        # All but the tensors is one text, because metadata values must be strings.
        metadata = {_RECORD: json.dumps(record.described())}
        write_atomic(self._file(record.scene_id), safetensors.torch.save(record.traces, metadata))

    def count(self) -> int:
        """How many scenes of the run have a record."""
        return sum(self._file(scene_id).exists() for scene_id in self.scene_ids)

    def read_all(self) -> list[SceneRecord]:
        """The records of all scenes, in their order.

        Raises:
            InputError: some are missing or damaged although every process has finished.
        """
        found = [self._read(scene_id) for scene_id in self.scene_ids]
        records = [record for record in found if record is not None]
        if len(records) < len(found):
            missing = [scene_id for scene_id, record in zip(self.scene_ids, found, strict=True) if not record]
            raise InputError(
                f"{self.path} lacks the records of {len(missing)} scenes, {missing[0]} among them, although "
                "every process has finished; do all of them write to the same disk? Continue with --resume."
            )
        return records

    def close(self) -> None:
        """Forget where the data lies: the records stay beside scores that are given away."""
        self._describe({name: value for name, value in self.settings.items() if name != ROOT})

    def _describe(self, settings: dict[str, Any]) -> None:
        write_atomic(self.path / _RUN_FILE, json.dumps(settings, indent=2).encode())

    def _file(self, scene_id: str) -> Path:
        # By hash, since ids may hold what file names may not.
        return self.path / f"{hashlib.sha256(scene_id.encode()).hexdigest()[:16]}.safetensors"

    def _is_done(self, scene_id: str, keep_failed: bool) -> bool:
        record = self._read(scene_id)
        done = record is not None and (record.failure is None or keep_failed)
        if not done:  # else it would count as measured
            self._file(scene_id).unlink(missing_ok=True)
        return done

    def _read(self, scene_id: str) -> SceneRecord | None:
        """The record of a scene; None, with a warning, if it is damaged, and without if there is none."""
        path = self._file(scene_id)
        try:
            with safe_open(path, framework="pt") as file:
                values = json.loads(file.metadata()[_RECORD])
                traces = {name: file.get_tensor(name) for name in values["traces"]}
            values |= {"view_ids": tuple(values["view_ids"]), "traces": traces}
            return SceneRecord(**values)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s); scene %s is measured again.", path, error, scene_id)
            return None


def check_out(out: Path, resume: bool) -> bool:
    """Find out before the work that its result can be written, and would replace nothing; then True.

    With `resume` scores may be replaced whose records are there, since nothing is lost then.

    Raises:
        InputError: it cannot, or there are scores without records, or without `resume` scores or records.
    """
    found = record_folders(out)
    if (out / CONFIG_FILE).exists() and not (resume and found):
        more = ", or measure more scenes for them with --resume" if found else ""
        raise InputError(f"{out} holds scores already; remove them or choose another --out{more}.")
    with input_errors(OSError, prefix=f"cannot write to {out}: "):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    if found and not resume:
        raise InputError(
            f"{out} holds records of a calibration; continue it with --resume, or remove {found[0]} to start "
            "over, or choose another --out."
        )
    return True


def record_folders(out: Path) -> list[Path]:
    """Folders with records of calibrations, stopped or finished."""
    return [folder for folder in sorted(out.glob(f"{_PREFIX}*")) if any(folder.glob("*.safetensors"))]


def _difference(folder: Path, settings: dict[str, Any]) -> str:
    """Names and values of the settings in which two runs differ, of fingerprints only the name."""
    try:
        other = dict(_flat(json.loads((folder / _RUN_FILE).read_text())))
    except (OSError, ValueError):
        return "what cannot be read from it"
    ours = dict(_flat(json.loads(json.dumps(settings))))
    names = [name for name in sorted(other | ours) if other.get(name) != ours.get(name)]
    parts = [
        f"{name} ({other.get(name)!r}, now {ours.get(name)!r})"
        if name == ROOT or len(repr(ours.get(name))) <= 40
        else name
        for name in names
    ]
    return ", ".join(parts) or "the format of records"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
