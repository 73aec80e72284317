"""Progress of long work, for people and for log files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 60  # between two lines of a log


class ProgressBar(tqdm):
    """A bar where somebody watches; in a log file, where nobody sees it move, a line a minute.

    Arguments as for `tqdm`; it writes to the standard error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not sys.stderr.isatty():
            kwargs |= {"mininterval": LINE_SECONDS, "maxinterval": LINE_SECONDS, "ncols": 100}
        super().__init__(*args, **kwargs)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """How tqdm shows its state: in place, or below what is there."""
        if file.isatty():
            return tqdm.status_printer(file)

        def print_line(line: str) -> None:
            if line.strip():
                print(line.strip(), file=file, flush=True)

        return print_line
