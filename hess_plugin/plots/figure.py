"""Figures without global state: matplotlib's object interface on the Agg canvas."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2430"  # titles and labels
FAINT = "#6b7280"  # secondary text, axes
PAPER = "#ffffff"
DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of `width` x `height` inches at `DPI`, drawn by Agg: needs no display.

    Raises:
        ImportError: naming the extra to install, when matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib; pip install "hess-plugin[demo]".') from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG at `DPI` pixels an inch; returns the path."""
    Path(path).write_bytes(png(figure))
    return Path(path)


def png(figure: Figure) -> bytes:
    """The figure as PNG at `DPI` pixels an inch; equal figures give equal bytes."""
    buffer = io.BytesIO()  # "Software" would else name the version of matplotlib
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": "hess-plugin"})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG, text as text; equal figures give equal bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "hess-plugin", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Creator": "hess-plugin"}
        figure.savefig(buffer, format="svg", facecolor=PAPER, metadata=metadata)
    return buffer.getvalue()


def bare(axes: Axes) -> None:
    """Remove ticks and frame: for axes that hold a picture."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
