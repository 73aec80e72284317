"""Figures in the form of the paper's, from the numbers of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..calibration.summary import rank_stability
from ..plots import Curve, Line, Panel, score_heatmap, tradeoff_figure
from ..sweep.methods import BASELINE, METHODS, Level
from .results import Metric, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = tuple(method.num_scenes for method in METHODS.values() if method.num_scenes is not None)


@dataclass(frozen=True)
class Comparison:
    """Methods that belong into one figure."""

    file: str
    title: str
    methods: tuple[str, ...]
    by_ratio: bool  # at levels of a density alone, or of (ρ, τ) pairs
    paired: bool = False  # show differences to the baseline instead of values


_ORDERS = (BASELINE, "hess", "reverse", "shuffled")
_STYLES = {name: style for style, name in enumerate((*_ORDERS, "no-capping"))}  # the same in all figures
_PUBLIC = (BASELINE, "uniform-cdf", "uniform-keys", "uniform-public")
_BASELINES = (BASELINE, "hess", "michel", "kwon", "merging")
COMPARISONS = (
    Comparison("pairs", "HeSS against uniform sparsity (Fig. 6)", (BASELINE, "hess"), False),
    Comparison("density", "Allocations at a given density, τ = 0", _ORDERS, True),
    Comparison("density_paired", "The same as paired differences to uniform", _ORDERS[1:], True, paired=True),
    Comparison("pairs_paired", "HeSS minus uniform, paired by scene", ("hess",), False, paired=True),
    Comparison("reverse", "Reversed and shuffled scores (Fig. 9)", _ORDERS, False),
    Comparison("no_capping", "Surplus dropped (Fig. 10)", (BASELINE, "hess", "no-capping"), False),
    Comparison("baselines", "Head pruning (Fig. 7) and token merging", _BASELINES, True),
    Comparison("lambda", "Weight λ (Fig. 11)", ("lambda-0", "lambda-0.5", "lambda-1"), False),
    Comparison("uniform_variants", "Choices of SparseVGGT's public code", _PUBLIC, False),
)


def comparison_figure(sweep: Sweep, comparison: Comparison) -> Figure | None:
    """Trade-off curves at the levels at which all of its methods were measured.

    None without two such levels, or without any of the methods that it is about.
    """
    present = [n for n in comparison.methods if any(n in sweep.methods(level) for level in sweep.levels)]
    levels = [
        level
        for level in sweep.levels
        if set(present) <= set(sweep.methods(level)) and comparison.by_ratio == (level.cdf_threshold == 0)
    ]
    subject = [name for name in comparison.methods if name not in (BASELINE, "hess")] or ["hess"]
    if len(levels) < 2 or not set(present) & set(subject):
        return None
    panels = []
    for metric in sweep.metrics[:3]:
        made = (_curve(sweep, name, levels, metric, comparison.paired) for name in present)
        curves = [curve for curve in made if curve is not None]
        dense = sweep.cell("dense", None, metric)
        line = None if dense is None else Line(dense.value.mean, "dense")
        if comparison.paired:
            line = Line(0.0, "uniform")
        if curves:
            panels.append(Panel(metric.heading, curves, metric.higher_is_better, line))
    return tradeoff_figure(panels, comparison.title) if panels else None


def _curve(sweep: Sweep, name: str, levels: Sequence[Level], metric: Metric, paired: bool) -> Curve | None:
    found = [(level, cell) for level in levels if (cell := sweep.cell(name, level, metric)) is not None]
    if not found:
        return None
    shown = [cell.difference if paired else cell.value for _, cell in found]
    return Curve(
        METHODS[name].label,
        [sweep.density(name, level) for level, _ in found],
        [each.mean for each in shown],
        [each.low for each in shown],
        [each.high for each in shown],
        _STYLES.get(name),
    )


def heatmap_figure(sweep: Sweep) -> Figure:
    """Scores of each layer and head, for either error (Fig. 4)."""
    return score_heatmap(sweep.scores.shares())


def stability_figure(sweep: Sweep) -> Figure | None:
    """How alike two calibrations on n scenes are, and what a model with scores of n scenes keeps."""
    half = len(sweep.scores.info.scene_ids) // 2
    if half < 2:
        return None
    sizes = sorted({n for n in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50) if n <= half} | {half})
    ranks = rank_stability(sweep.scores, sizes)
    values = list(ranks.values())
    exact = Curve("rank correlation", sizes, values, values, values)
    panels = [Panel("Rank correlation of heads", [exact], True, x_label="calibration scenes")]
    for metric in sweep.metrics[:2]:
        curves = []
        for level in sweep.levels:
            cells = {n: sweep.cell(f"scenes-{n}", level, metric) for n in SIZES}
            known = {n: cell.value for n, cell in cells.items() if cell is not None}
            if len(known) > 1:
                label = f"{metric.heading} at {level.name}"
                means, low, high = ([getattr(v, k) for v in known.values()] for k in ("mean", "low", "high"))
                curves.append(Curve(label, list(known), means, low, high))
        if curves:
            panels.append(
                Panel(metric.heading, curves, metric.higher_is_better, x_label="calibration scenes")
            )
    return tradeoff_figure(panels, "How many calibration scenes are enough")
