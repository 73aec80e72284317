"""Files and result folders that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, input_errors

MANIFEST = "results.json"  # lists under "files" what else the run wrote


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that the path holds the old content or the new, never a part, also when killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends, and vanishes if it raises.

    `out` may be absent, empty, or the result of an earlier run, which is replaced. This is checked before the
    block, so that nothing is computed in vain.

    Raises:
        InputError: `out` holds files that no earlier run wrote, or its parent cannot be written.
    """
    out = Path(out).expanduser().resolve()
    with input_errors(OSError, prefix=f"cannot write to {out}: "):
        _check_replaceable(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield stage
        _check_replaceable(out)
        with input_errors(OSError, prefix=f"cannot write to {out}: "):
            stage.chmod(0o755)  # mkdtemp makes private folders
            _replace(out, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def written_files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _check_replaceable(out: Path) -> None:
    """Refuse to replace a folder with anything in it that an earlier run did not write."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file, results need a folder; choose another --out.")
    present = written_files(out)
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write to {out}: permission denied; choose another --out.")
    try:
        known = {MANIFEST, *json.loads((out / MANIFEST).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    foreign = [name for name in present if name not in known]
    if foreign:
        raise InputError(
            f"{out} would be replaced, but holds {foreign[0]!r}, which no earlier run wrote; "
            "choose another --out."
        )


def _replace(out: Path, stage: Path) -> None:
    """Move `stage` to `out`; the old folder is set aside first and comes back if the move fails."""
    if not out.exists():
        stage.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent)) / out.name
    try:
        out.rename(aside)
        try:
            stage.rename(out)
        except OSError:
            aside.rename(out)
            raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def finite(value: Any) -> Any:
    """The same JSON values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
