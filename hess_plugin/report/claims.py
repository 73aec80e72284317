"""Which of the paper's comparisons come out as the paper says, counted over levels of sparsity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..sweep.methods import METHODS
from .results import Metric, Sweep
from .tables import SIGNIFICANT, markdown_table

# What the paper says HeSS is better than, and where; and what it does not compare with.
CLAIMS = {
    "uniform": "Fig. 6, Tables S1 and S2",
    "reverse": "Fig. 9",
    "no-capping": "Fig. 10",
    "lambda-0": "Fig. 11, at low sparsity",
    "lambda-1": "Fig. 11, at high sparsity",
    "key": "Table 1",
    "value": "Table 1",
    "linear": "Table 1",
    "softmax": "Table 1",
    "log": "Table 1",
    "michel": "Fig. 7",
    "kwon": "Fig. 7",
    "shuffled": "not in it",
    "merging": "not in it",
}


def claims(sweep: Sweep) -> str | None:
    """At how many levels HeSS is better than each alternative, and worse; None without any to compare."""
    rows = list(_rows(sweep))
    if not rows:
        return None
    headings = ["HeSS against", "In the paper", "Levels", *(metric.heading for metric in sweep.metrics)]
    note = (
        "Levels at which HeSS is **better** / not clearly either / worse, by the paired test at "
        f"p < {SIGNIFICANT:g}; in brackets the mean difference over levels. Wherever the paper compares, it "
        "says better, except at 10 of 16 levels of Table S1 (Chamfer distance on DTU) and one of Table S2 "
        "(AUC@30)."
    )
    return f"### What of the paper comes out here\n\n{note}\n\n{markdown_table(headings, rows)}"


def _rows(sweep: Sweep) -> Iterator[list[str]]:
    for name, where in CLAIMS.items():
        levels = sum({name, "hess"} <= set(sweep.methods(level)) for level in sweep.levels)
        if levels:
            counted = [_count(sweep, name, metric) for metric in sweep.metrics]
            yield [METHODS[name].label, where, str(levels), *counted]


def _count(sweep: Sweep, name: str, metric: Metric) -> str:
    """Such as "**9** / 2 / 0 (+0.0512)"."""
    found = [
        cell
        for level in sweep.levels
        if name in sweep.methods(level) and (cell := sweep.cell("hess", level, metric, name)) is not None
    ]
    if not found:
        return "n/a"
    counts = Counter(metric.verdict(cell.difference.mean, cell.p < SIGNIFICANT) for cell in found)
    mean = sum(cell.difference.mean for cell in found) / len(found)
    return f"**{counts['better']}** / {counts['']} / {counts['worse']} ({mean:+.4f})"
