"""Head scores made of random numbers, with every field filled in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hess_plugin.scores import HeadScores, ScoresInfo, trace_names

FIT = {"backbone": "vggt", "num_layers": 2, "num_heads": 3, "head_dim": 16}


def make_info(**changes: Any) -> ScoresInfo:
    values: dict[str, Any] = {
        **FIT,
        "dataset": "toy",
        "scene_ids": ("a", "b"),
        "view_ids": (("1", "2", "3", "4"), ("2", "3", "5", "7")),
        "dataset_settings": {"subset": "fewview_dev", "size": [64, 48]},
        "skipped": {"c": "has 3 views"},
        "num_views": 4,
        "seed": 0,
        "camera_weight": 0.25,
        "calibration": {"inlier_radius": 0.2236},
        "base_model": "facebook/VGGT-1B",
        "base_revision": "0123abc",
        "weights_sha256": "f" * 64,
    }
    return ScoresInfo(**(values | changes))


def make_scores(**changes: Any) -> HeadScores:
    info, generator = make_info(**changes), torch.Generator().manual_seed(0)
    names = trace_names(info.projections)
    shape = (len(info.scene_ids), 2, 3)
    return HeadScores({n: torch.rand(shape, generator=generator, dtype=torch.float64) for n in names}, info)


def traces_of(camera: list, points: list) -> dict[str, Tensor]:
    return {"camera": torch.tensor(camera), "points": torch.tensor(points)}
