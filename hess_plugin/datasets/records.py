"""JSON files of datasets: each value is asked for by name, and what is missing or does not fit is named."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Record:
    """A JSON value that knows where it stands.

    Example:
        >>> Record({"image": {"size": [4, "x"]}}, "'frames.json', frame 3").numbers("image.size", (2,))
        Traceback (most recent call last):
        ...
        hess_plugin.errors.InputError: 'frames.json', frame 3: 'image.size' must be 2 numbers.
    """

    values: Any
    where: str  # file, and place in it

    def field(self, name: str) -> Any:
        """The value under a name, or under names joined by dots.

        Raises:
            InputError: there is none.
        """
        value = self.values
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise InputError(f"{self.where} has no field {name!r}.")
            value = value[part]
        return value

    def text(self, name: str) -> str:
        """A field that must be a string, not empty."""
        value = self.field(name)
        if not isinstance(value, str) or not value:
            raise InputError(f"{self.where}: {name!r} must be a text, got {value!r}.")
        return value

    def numbers(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A field of numbers, float64 of this shape; NaN for null, and for the NaN that Python writes."""
        values = self.field(name)
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            array = None
        if array is None or array.shape != shape:
            count = " x ".join(map(str, shape)) + " numbers" if shape else "a number"
            raise InputError(f"{self.where}: {name!r} must be {count}.")
        return array


def read_json(path: Path, keep: Callable[[dict], Any] | None = None) -> Record:
    """Content of a JSON file, gzipped if its name ends in `.jgz`.

    Args:
        path: of the file.
        keep: called with each object as soon as it is parsed; what it returns takes the object's place, so
            that what nobody needs of a large file never lies in memory.

    Raises:
        InputError: the file is missing, cut off or no JSON.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".jgz":
            content = gzip.decompress(content)
        values = json.loads(content, object_hook=keep)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"cannot read {str(path)!r}: {error}.") from error
    return Record(values, repr(str(path)))
