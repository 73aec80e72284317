"""Text for terminals."""

from __future__ import annotations

import re

import torch

from hess_plugin.scores import HeadScores, ScoresInfo
from hess_plugin.tables import format_scores, format_table


def test_columns_line_up() -> None:
    table = format_table(
        ["", "a long heading", "x"], [["name", "1", "22222"], ["longer name", "12345.6", "3"]]
    )
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("name ")
    assert lines[0].index("heading") + len("heading") == lines[2].index("12345.6") + len("12345.6")


def test_scores_name_the_most_sensitive_heads() -> None:
    info = ScoresInfo(
        backbone="vggt", num_layers=2, num_heads=4, head_dim=8, dataset="toy", scene_ids=("a", "b"),
        view_ids=(("0", "1", "2"), ("3", "4", "5")), num_views=3, seed=0, camera_weight=0.5,
        base_model="org/model", base_revision="abc", dataset_settings={"subset": "fewview_dev"},
    )  # fmt: skip
    camera = torch.tensor([[1.0, 7.0, 2.0, 0.0], [1.0, 1.0, 1.0, 7.0]], dtype=torch.float64)
    points = torch.tensor([[8.0, 1.0, 1.0, 0.0], [1.0, 1.0, 6.0, 2.0]], dtype=torch.float64)
    traces = {"camera": camera.expand(2, 2, 4), "points": points.expand(2, 2, 4)}
    text = format_scores(HeadScores(traces, info))
    assert "vggt, 2 layers x 4 heads of 8" in text
    assert "org/model@abc" in text
    assert "2 scenes x 3 views of toy" in text
    assert re.search("projections +query\n", text)
    assert re.search("dataset settings +subset=fewview_dev\n", text)
    rows = [line.split("  ") for line in text.splitlines()[-2:]]
    assert "2 (0.70), 3 (0.20), 1 (0.10)" in rows[0]
    assert "1 (0.80), 2 (0.10), 3 (0.10)" in rows[0] or "1 (0.80), 3 (0.10), 2 (0.10)" in rows[0]
    assert any(cell.startswith("4 (0.70)") for cell in rows[1])
