"""Plain text: counts, aligned tables, and what a sidecar holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scores import HeadScores, ScoresInfo

NUM_TOP_HEADS = 3


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right.

    Example:
        >>> print(format_table(["method", "error"], [["dense", "0.1"], ["HeSS", "12.0"]]))
        method  error
        dense     0.1
        HeSS     12.0
    """
    lines = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def count_of(number: int, noun: str) -> str:
    """How many there are.

    Example:
        >>> count_of(1, "scene"), count_of(2, "scene"), count_of(2, "process")
        ('1 scene', '2 scenes', '2 processes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def format_calibrated_on(info: ScoresInfo) -> str:
    """What scores were calibrated on, like "40 scenes x 20 views of co3d"."""
    scenes, views = count_of(len(info.scene_ids), "scene"), count_of(info.num_views, "view")
    return f"{scenes} x {views} of {info.dataset}"


def format_scores(scores: HeadScores) -> str:
    """Where scores come from, and the most sensitive heads of each layer, both counted from 1."""
    info = scores.info
    facts = {
        "backbone": f"{info.backbone}, {info.num_layers} layers x {info.num_heads} heads of {info.head_dim}",
        "base model": "@".join(filter(None, (info.base_model or "not named", info.base_revision))),
        "weights": info.weights_sha256 or "no fingerprint",
        "calibrated on": format_calibrated_on(info),
        "camera weight": f"{info.camera_weight:g}",
        "projections": ", ".join(info.projections),
        "settings": _listed(info.calibration, "="),
        "dataset settings": _listed(info.dataset_settings, "="),
        "software": _listed(info.versions, " "),
    }
    width = max(map(len, facts))
    lines = [f"{key.ljust(width)}  {value}" for key, value in facts.items()]
    heading = f"Most sensitive heads (share of their layer; evenly spread it is {1 / info.num_heads:.2f})"
    return "\n".join([*lines, "", heading, format_table(*top_heads(scores))])


def _listed(values: Mapping[str, object], sign: str) -> str:
    return ", ".join(f"{key}{sign}{value}" for key, value in values.items()) or "none stated"


def top_heads(scores: HeadScores) -> tuple[list[str], list[list[str]]]:
    """Headings and one row per layer: the most sensitive heads with their shares, all counted from 1."""
    shares = scores.shares() | {"both": scores.weights()}
    rows = []
    for layer in range(scores.info.num_layers):
        top = [share[layer].topk(min(NUM_TOP_HEADS, scores.info.num_heads)) for share in shares.values()]
        cells = [
            ", ".join(f"{int(head) + 1} ({share:.2f})" for share, head in zip(*t, strict=True)) for t in top
        ]
        rows.append([str(layer + 1), *cells])
    return ["layer", *shares], rows
