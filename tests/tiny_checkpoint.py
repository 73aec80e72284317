"""A VGGT checkpoint with scores, small enough to be made and run in a test."""

from __future__ import annotations

from pathlib import Path

import torch

from hess_plugin.models import VggtConfig, VggtImageProcessor, VggtModel
from hess_plugin.scores import HeadScores, ScoresInfo

IMAGE_SIZE, PATCH_SIZE = 64, 8


def save_tiny_checkpoint(folder: Path) -> Path:
    """Write what the embedded checkpoint has: weights in float16, an image processor, `hess/synthetic`."""
    torch.manual_seed(0)
    config = VggtConfig(
        img_size=IMAGE_SIZE, patch_size=PATCH_SIZE, patch_embed="conv", embed_dim=32, depth=2, num_heads=4,
        camera_trunk_depth=1, camera_num_heads=2, dpt_features=8, dpt_out_channels=(8, 8, 8, 8),
        dpt_layers=(0, 0, 1, 1), enable_track=False, layer_scale_init=0.1,
    )  # fmt: skip
    VggtModel(config).half().save_pretrained(folder)
    VggtImageProcessor(size=IMAGE_SIZE, patch_size=PATCH_SIZE).save_pretrained(folder)
    save_scores(folder / "hess" / "synthetic")
    return folder


def save_scores(folder: Path, num_heads: int = 4) -> Path:
    """Write random scores for a model with this many heads."""
    info = ScoresInfo(
        backbone="vggt", num_layers=2, num_heads=num_heads, head_dim=8, dataset="synthetic",
        scene_ids=("a", "b"), view_ids=(("0", "1", "2", "3"),) * 2, num_views=4, seed=0, camera_weight=0.5,
    )  # fmt: skip
    traces = {error: torch.rand(2, 2, num_heads, dtype=torch.float64) for error in ("camera", "points")}
    HeadScores(traces, info).save(folder)
    return folder
