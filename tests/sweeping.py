"""Running `hess sweep` in tests, and reading what it kept."""

from __future__ import annotations

from pathlib import Path

from hess_plugin.cli import main
from hess_plugin.sweep.records import SettingRecord, SweepFolder

BASE = ["--device", "cpu", "--base", "q_block_size=4,kv_block_size=2"]
SYNTHETIC = ["--dataset", "synthetic", "--num-scenes", "3", "--num-views", "4", *BASE]


def sweep(model: Path, out: Path, *options: str) -> SweepFolder:
    assert main(["sweep", "--model", str(model), "--out", str(out), "--preset", "small", *options]) == 0
    return SweepFolder(out)


def scene_records(folder: SweepFolder) -> dict[str, dict[str, SettingRecord]]:
    return {scene_id: folder.read(scene_id) for scene_id in folder.read_run()["scenes"]}
