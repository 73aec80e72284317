"""The whole way at toy size: two processes calibrate on a CO3D tree, push to a hub, a fresh process loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from co3d_tree import write_rendered
from hub_server import HubServer

from hess_plugin import HeadScores, VggtModel

ROOT = Path(__file__).parents[1]
TINY = ROOT / "hess_plugin" / "assets" / "tiny_vggt"
REPO = "tester/tiny-vggt"


def test_from_photos_to_an_alias(hub: HubServer, tmp_path: Path) -> None:
    VggtModel.from_pretrained(TINY, dtype=torch.float32).push_to_hub(REPO)
    write_rendered(tmp_path / "co3d", frames=5)
    command = [str(ROOT / "examples" / "share_scores.py"), "--model", REPO, "--repo", REPO]
    command += ["--root", str(tmp_path / "co3d"), "--processes", "2", "--out", str(tmp_path / "scores")]
    # Whether the small model fits these few views does not matter here.
    command += ["--num-scenes", "3", "--num-views", "3", "--max-points", "1000", "--min-fitness", "0"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr

    assert "Processes: 2" in done.stdout  # the obvious command would have started one
    assert json.loads((tmp_path / "scores" / "calibration_log.json").read_text())["processes"] == 2
    loaded = re.search(r"hess='co3d': HeadScores\(vggt, 8 x 12 heads, co3d\), sparsity (0\.\d+)", done.stdout)
    assert loaded, done.stdout
    assert float(loaded[1]) > 0

    info = HeadScores.load(tmp_path / "scores").info
    assert info.base_model == REPO
    assert len(info.scene_ids) == 3
    pushed = hub.repos["model", REPO]
    assert pushed.commits[info.base_revision].files.keys() >= {"model.safetensors"}
    files = pushed.resolve("main").files
    assert {"hess/co3d/hess_scores.safetensors", "hess/co3d/hess_config.json", "model.safetensors"} <= set(
        files
    )
