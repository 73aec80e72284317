"""Accuracy against density: one line per method with its interval, and what more calibration scenes bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figure import FAINT, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by hue and lightness, also by people who do not see red and green apart.
COLORS = ("#6b7280", "#6d28d9", "#d97706", "#0891b2", "#be123c", "#4d7c0f", "#1d4ed8", "#a16207")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Curve:
    """One method; points in any order."""

    label: str
    x: Sequence[float]  # density
    mean: Sequence[float]
    low: Sequence[float]  # of the 95 % interval
    high: Sequence[float]
    style: int | None = None  # of colour and marker; None: by its place among the figure's labels


@dataclass(frozen=True)
class Line:
    """What does not depend on x, such as the dense model."""

    value: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One metric."""

    title: str
    curves: Sequence[Curve]
    higher_is_better: bool
    line: Line | None = None
    x_label: str = "measured density"


def tradeoff_figure(panels: Sequence[Panel], title: str) -> Figure:
    """Panels side by side; a label has the same colour in all of them, and one legend tells which.

    Args:
        panels: at least one, each with at least one curve.
        title: of the figure.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError("a figure needs at least one panel, and each panel at least one curve.")
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    figure = new_figure(1.2 + 3.9 * len(panels), 4.4)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        _draw(axes, panel, labels)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, color=INK)
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=min(len(handles), 2 + 2 * len(panels)),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.subplots_adjust(left=0.75 / figure.get_figwidth(), right=0.98, top=0.83, bottom=0.24, wspace=0.27)
    return figure


def _draw(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    if panel.line is not None:
        axes.axhline(panel.line.value, color=INK, linestyle="--", linewidth=1, label=panel.line.label)
    for curve in panel.curves:
        place = labels.index(curve.label) if curve.style is None else curve.style
        color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
        order = sorted(range(len(curve.x)), key=curve.x.__getitem__)
        x, mean, low, high = (
            [values[i] for i in order] for values in (curve.x, curve.mean, curve.low, curve.high)
        )
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=curve.label)
    arrow = "↑ higher is better" if panel.higher_is_better else "↓ lower is better"
    axes.set_title(f"{panel.title}  ({arrow})", fontsize=10, color=INK, loc="left")
    axes.set_xlabel(panel.x_label, fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT, length=3)
    if all(x == int(x) for curve in panel.curves for x in curve.x):
        axes.locator_params(axis="x", integer=True)
    axes.grid(color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#d1d5db")
