"""What an evaluation prints, and hands on to cards of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..tables import count_of, format_table
from .measurements import Measurement

_FIRST = ("auc_30", "auc_15", "auc_5", "auc_3", "ate", "chamfer", "accuracy", "completeness", "point_error")


def method_of(run: dict[str, Any]) -> str:
    """What a run of `hess predict` is called beside others: "dense", its allocation, or its baseline."""
    if run.get("baseline") is not None:  # older runs have no such key
        return run["baseline"]["method"]
    return "dense" if run["sparsity"] is None else run["sparsity"]["allocation"]


def format_evaluation(content: dict[str, Any]) -> str:
    """Text of a `metrics.json`: what was run, the categories if there are several, all overall metrics."""
    run, overall = content["run"], content["overall"]
    lines = [
        f"{run['model']['name']} on {run['dataset']}, {count_of(len(content['scenes']), 'scene')}"
        + (f" ({content['failed_scenes']} failed)" if content["failed_scenes"] else ""),
        f"{method_of(run)}, measured density {content['density']:.4f}",
        f"protocol {content['protocol']}: {content['about']}",
        "",
    ]
    if len(content["categories"]) > 1:
        shown = [name for name in _FIRST if name in overall]
        rows = [
            [name, *(_text(metrics[key]) for key in shown)] for name, metrics in content["categories"].items()
        ]
        lines += [format_table(["category", *shown], rows), ""]
    names = [*(name for name in _FIRST if name in overall), *(n for n in overall if n not in _FIRST)]
    columns = {"overall": overall} | ({"pooled": content["pooled"]} if content["pooled"] else {})
    rows = [[name, *(_text(column[name]) for column in columns.values())] for name in names]
    return "\n".join([*lines, format_table(["metric", *columns], rows)])


def measurements_of(content: dict[str, Any]) -> Iterator[Measurement]:
    """The overall metrics of a `metrics.json` that have a value, as a card lists them."""
    run = content["run"]
    for metric, value in content["overall"].items():
        if math.isfinite(value):
            yield Measurement(
                dataset=run["dataset"],
                method=method_of(run),
                metric=f"{metric} ({content['protocol']})" if content["protocol"] != "scene" else metric,
                value=value,
                density=content["density"],
                num_scenes=len(content["scenes"]),
                num_views=content["num_views"],
                command=content["command"],
            )


def _text(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4f}"
