"""Time and memory over the number of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .figure import FAINT, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"dense": "#9ca3af", "sparse": "#6d28d9"}
_BYTES = 1e9


def draw_growth(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Two panels: seconds of a forward pass, and peak memory where it is known.

    Args:
        records: with `views`, `attention`, `seconds` and `peak_bytes`; None where there is none.
    """
    panels = {"seconds": ("Forward pass, seconds", 1.0), "peak_bytes": ("Peak GPU memory, GB", _BYTES)}
    panels = {key: panel for key, panel in panels.items() if any(r[key] is not None for r in records)}
    figure = new_figure(5.2 * max(1, len(panels)), 3.8)
    for number, (key, (title, unit)) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for attention, color in COLORS.items():
            points = [
                (r["views"], r[key] / unit)
                for r in records
                if r["attention"] == attention and r[key] is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=attention)
        _style(axes, title)
    figure.tight_layout()
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_xlabel("views", fontsize=9, color=FAINT)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8, colors=FAINT)
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
