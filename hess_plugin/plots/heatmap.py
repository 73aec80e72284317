"""Head sensitivity as heat maps, layers by heads (the paper's Fig. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .figure import FAINT, INK, bare, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

ERRORS = ("camera", "points")


def score_heatmap(scores: dict[str, Tensor]) -> Figure:
    """Both panels and their colour bar as a figure of its own.

    Args:
        scores: "camera" and "points", each [L, H]: share of a layer's sensitivity that falls to each head.
    """
    figure = new_figure(10, 3.6)
    panels = [figure.add_axes(box) for box in ((0.06, 0.17, 0.37, 0.68), (0.51, 0.17, 0.37, 0.68))]
    draw_score_panels(panels, figure.add_axes((0.91, 0.17, 0.014, 0.68)), scores)
    return figure


def draw_score_panels(panels: Sequence[Axes], bar: Axes, scores: dict[str, Tensor]) -> None:
    """Draw the camera and the points panel with one colour scale, and its colour bar into `bar`.

    Darker is more sensitive. The scale starts at 0, and ends at the largest share in either panel.
    """
    for error in ERRORS:
        if error not in scores or scores[error].ndim != 2:
            raise ValueError(f"scores must hold {ERRORS}, each [L, H]; got {_shapes(scores)}.")
    top = max(float(scores[error].max()) for error in ERRORS)
    for panel, error in zip(panels, ERRORS, strict=True):
        image = _draw_panel(panel, scores[error], top)
        title = f"Head sensitivity to the {error.removesuffix('s')} error"
        panel.set_title(title, fontsize=11, color=INK, loc="left")
    panels[0].set_ylabel("head", fontsize=9, color=FAINT)
    assert panels[0].figure is not None
    colorbar = panels[0].figure.colorbar(image, cax=bar)
    colorbar.outline.set_visible(False)
    bar.tick_params(labelsize=8, colors=FAINT, length=0)
    bar.set_title("share\nof layer", fontsize=8, color=FAINT, loc="left")


def _draw_panel(axes: Axes, shares: Tensor, top: float) -> AxesImage:
    """One panel, layers on x and heads on y, both counted from 1 as in the paper."""
    num_layers, num_heads = shares.shape
    bare(axes)
    image = axes.imshow(
        shares.T.double().cpu().numpy(),
        cmap="Purples",
        vmin=0,
        vmax=top,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_xticks(range(0, num_layers, _step(num_layers)))
    axes.set_xticklabels([f"{i + 1}" for i in range(0, num_layers, _step(num_layers))])
    axes.set_yticks(range(0, num_heads, _step(num_heads)))
    axes.set_yticklabels([f"{i + 1}" for i in range(0, num_heads, _step(num_heads))])
    axes.tick_params(labelsize=8, colors=FAINT, length=0)
    axes.set_xlabel("global attention layer", fontsize=9, color=FAINT)
    # White gaps between the cells keep single heads readable.
    axes.hlines([i - 0.5 for i in range(1, num_heads)], -0.5, num_layers - 0.5, colors="white", linewidths=1)
    axes.vlines([i - 0.5 for i in range(1, num_layers)], -0.5, num_heads - 0.5, colors="white", linewidths=1)
    return image


def _step(count: int) -> int:
    """Distance between tick labels so that about a dozen fit."""
    return 1 if count <= 14 else 2 if count <= 28 else 4


def _shapes(scores: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in scores.items()) or "nothing"
