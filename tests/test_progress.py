from __future__ import annotations

import io
import re
import sys

import pytest

from hess_plugin import progress
from hess_plugin.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, file: io.StringIO, steps: int = 5) -> str:
    monkeypatch.setattr(sys, "stderr", file)
    with ProgressBar(desc="measuring", total=steps) as bar:
        for _ in range(steps):
            bar.update()
    return file.getvalue()


def test_a_log_gets_lines_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO())
    assert "\r" not in text
    first, *_, last = text.strip().splitlines()
    assert first.startswith("measuring:   0%")
    assert re.match(r"measuring: 100%\|[█#]*\| 5/5 \[.*\]$", last)
    assert len(text.splitlines()) < 4  # not one for each step

    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    assert len(shown(monkeypatch, io.StringIO()).splitlines()) >= 6


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, Terminal())
    assert "\r" in text
    assert text.count("\n") == 1
