"""A native model with random scores and gates of six synthetic scenes beside its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from doubles import tiny_native_vggt

from hess_plugin.gates import HeadGates
from hess_plugin.scores import HeadScores, ScoresInfo

SCORES_FOLDER = "hess/synthetic"  # of the model


def save_calibrated_model(folder: Path) -> Path:
    """Traces are of W_Q and W_K; 2 layers of 4 heads."""
    torch.manual_seed(0)
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
    HeadScores(traces, info).save(folder / SCORES_FOLDER)
    gates = {name: torch.randn(6, config.depth, config.num_heads).double() for name in ("camera", "points")}
    HeadGates(gates, info).save(folder / SCORES_FOLDER)
    return folder
