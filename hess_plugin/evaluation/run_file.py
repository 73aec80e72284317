"""The configuration beside results: what they are results of, so that nothing of another run joins them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, input_errors
from ..files import write_atomic


@dataclass(frozen=True)
class RunFile:
    """A JSON file with all that decides the results in its folder, and their format."""

    path: Path
    format: int  # newest that is read
    holds: str  # what the folder holds, for messages
    command: str  # that makes it

    def read(self) -> dict[str, Any]:
        """Its content.

        Raises:
            InputError: there is none, it cannot be read, or it is of a newer format.
        """
        if not self.path.is_file():
            raise InputError(
                f"{self.path.parent} holds no {self.holds}: there is no {self.path.name}; run {self.command}."
            )
        with input_errors(OSError, ValueError, KeyError, TypeError, prefix=f"cannot read {self.path}: "):
            run = json.loads(self.path.read_text(encoding="utf-8"))
            if run["format"] > self.format:
                raise ValueError(f"its format is {run['format']}, this version reads {self.format}")
            return run

    def begin(self, run: dict[str, Any], may_differ: Collection[str]) -> None:
        """Make the folder for a run, or go on with it.

        Args:
            run: the configuration, as JSON values.
            may_differ: keys in which the results of one folder need not agree.

        Raises:
            InputError: the folder holds results of a run with other settings, or cannot be written.
        """
        run = json.loads(json.dumps(run))
        before = self.read() if self.path.exists() else run
        differing = [key for key in run if key not in may_differ and run[key] != before.get(key)]
        if differing:
            raise InputError(
                f"{self.path.parent} holds {self.holds} of another run, which differs in "
                f"{', '.join(differing)}; choose another --out, or remove it."
            )
        with input_errors(OSError, prefix=f"cannot write to {self.path.parent}: "):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, json.dumps(run, indent=2, ensure_ascii=False).encode())
