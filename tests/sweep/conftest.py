from __future__ import annotations

from pathlib import Path

import pytest
import torch
from doubles import tiny_native_vggt
from sweeping import SYNTHETIC, sweep

from hess_plugin.gates import HeadGates
from hess_plugin.scores import HeadScores, ScoresInfo
from hess_plugin.sweep.records import SweepFolder


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native model with random scores of six scenes in W_Q and W_K."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    native = tiny_native_vggt()
    native.save_pretrained(folder)
    config, ids = native.config, tuple(f"synthetic-{10_000 + k}" for k in range(6))
    info = ScoresInfo(
        backbone="vggt", num_layers=config.depth, num_heads=config.num_heads, projections=("query", "key"),
        head_dim=config.embed_dim // config.num_heads, dataset="synthetic", scene_ids=ids,
        view_ids=(("0", "1", "2"),) * 6, num_views=3, seed=0, camera_weight=0.5,
    )  # fmt: skip
    names = ("camera", "points", "camera.key", "points.key")
    traces = {name: torch.rand(6, config.depth, config.num_heads).double() ** 3 for name in names}
    HeadScores(traces, info).save(folder / "hess" / "synthetic")
    gates = {name: torch.randn(6, config.depth, config.num_heads).double() for name in ("camera", "points")}
    HeadGates(gates, info).save(folder / "hess" / "synthetic")
    return folder


@pytest.fixture(scope="package")
def swept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return sweep(model, tmp_path_factory.mktemp("swept") / "out", *SYNTHETIC)
