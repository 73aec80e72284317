"""The command `hess evaluate`: saved predictions in, numbers out; it never sees a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import InputError
from ..files import finite, write_atomic
from .measurements import write_measurements
from .measuring import Evaluation
from .predictions import METRICS_FILE, PredictionFolder, SavedPrediction
from .protocols import measure, protocol_for
from .results import format_evaluation, measurements_of

MEASUREMENTS_FILE = "measurements.json"  # for `hess push --evaluation`


@dataclass(frozen=True)
class EvaluationRun:
    """Which predictions become numbers, and how."""

    folder: Path
    protocol: str | None = None  # None: that of the predictions
    truth: Path | None = None  # root of DTU's official ground truth
    alignment: str = "cameras"  # or "pixels", by dtu-official
    skip_failed: bool = False
    command: str = "hess evaluate"  # as it was called, for people


def run_evaluation(run: EvaluationRun) -> Evaluation:
    """Measure saved predictions; print the table, write `metrics.json` and `measurements.json` beside them.

    Raises:
        InputError: predictions are missing, damaged or failed, or do not hold what the protocol reads.
    """
    folder = PredictionFolder(run.folder)
    described = folder.read_run()
    protocol = protocol_for(run.protocol or described["protocol"], described["dataset"])
    kept = _kept(folder, described, run.skip_failed)
    densities, views = [], []

    def saved() -> Iterator[SavedPrediction]:
        for scene_id in tqdm(kept, desc="measuring", unit="scene", disable=None):
            each = folder.read(scene_id)
            densities.append(each.density)
            views.append(len(each.view_ids))
            yield each

    found = measure(protocol, saved(), run.truth, run.alignment)
    called = described["command"]
    failed = len(described["views"]) - len(kept)
    alignment = {"alignment": run.alignment} if protocol.needs_root else {}
    content = {
        "protocol": protocol.name,
        **alignment,
        "about": protocol.about,
        "command": run.command if run.command == called else f"{called} && {run.command}",
        "failed_scenes": failed,
        "num_views": max(views),
        "density": sum(densities) / len(densities),
        "overall": found.overall,
        "categories": found.categories,
        "pooled": found.pooled,
        "scenes": found.scenes,
        "run": {name: value for name, value in described.items() if name != "views"},
    }
    write_atomic(run.folder / METRICS_FILE, (json.dumps(finite(content), indent=2) + "\n").encode())
    write_measurements(run.folder / MEASUREMENTS_FILE, measurements_of(content))
    print(format_evaluation(content))
    return found


def _kept(folder: PredictionFolder, described: dict[str, Any], skip_failed: bool) -> list[str]:
    failures = {
        scene_id: failure
        for scene_id in described["views"]
        if (failure := folder.read(scene_id, with_tensors=False).failure) is not None
    }
    kept = [scene_id for scene_id in described["views"] if scene_id not in failures]
    if not kept or (failures and not skip_failed):
        scene_id, reason = next(iter(failures.items()))
        raise InputError(
            f"{len(failures)} of {len(described['views'])} scenes have no prediction ({scene_id}: {reason}); "
            f"{'predict again, or leave them out with --skip-failed' if kept else 'predict again'}."
        )
    return kept
