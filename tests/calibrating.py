"""Helpers of the tests of `hess calibrate`."""

from __future__ import annotations

from pathlib import Path

# Random weights fit nothing: whatever the alignment explains is taken.
UNTRAINED = ("--min-fitness", "0", "--no-icp")


def calibrate(model: Path, out: Path, *more: str) -> list[str]:
    """Arguments of `hess` that calibrate a model on a CPU."""
    return ["calibrate", "--model", str(model), "--out", str(out), "--device", "cpu", *more]
