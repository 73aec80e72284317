"""One picture of a run: photos, clouds and depth maps of every method side by side, and the head scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .figure import DPI, FAINT, INK, bare, new_figure
from .heatmap import draw_score_panels
from .point_cloud import PointCloud
from .render import Viewpoint, draw_cloud

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, MARGIN, GAP = 1600, 40, 18  # pixels
CLOUD_ASPECT = 1.2  # width over height of a cloud picture; viewpoints should use it
NUM_DEPTH_MAPS = 3
HEADER, BLOCK_HEAD, BLOCK_FOOT, SCORES, CAPTION_LINE = 96, 84, 36, 300, 20  # heights, pixels


@dataclass(frozen=True)
class SheetColumn:
    """What one method made of a scene."""

    title: str
    subtitle: str
    depth: Tensor  # [V, height, width] in units shared by the block's columns; NaN where unknown
    cloud: PointCloud
    pyramids: Tensor  # [V, 5, 3] viewing pyramids


@dataclass(frozen=True)
class SheetBlock:
    """One scene; the first column sets the range of the depth colours."""

    title: str
    photos: Tensor  # [V, 3, height, width] in [0, 1]
    viewpoint: Viewpoint
    columns: Sequence[SheetColumn]


class _Canvas:
    """A figure addressed in pixels from the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = new_figure(width / DPI, height / DPI)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        bare(axes)
        return axes

    def text(self, x: float, y: float, text: str, size: float, color: str = INK, bold: bool = False) -> None:
        place = (x / self.width, 1 - y / self.height)
        weight = "bold" if bold else "normal"
        self.figure.text(*place, text, fontsize=size, color=color, va="top", weight=weight)


def contact_sheet(
    title: str, subtitle: str, caption: str, blocks: Sequence[SheetBlock], scores: dict[str, Tensor] | None
) -> Figure:
    """Draw the sheet, 1600 pixels wide.

    Args:
        title, subtitle: the two lines at the top.
        caption: small print at the bottom, of one or more lines.
        blocks: one per scene, top to bottom.
        scores: "camera" and "points" [L, H] for the heat maps at the bottom; None leaves them out.
    """
    heights = [_block_height(block) for block in blocks]
    footer = 22 + CAPTION_LINE * (1 + caption.count("\n"))
    total = HEADER + sum(heights) + (SCORES if scores else 0) + footer
    canvas = _Canvas(WIDTH, round(total))
    canvas.text(MARGIN, 26, title, 19, bold=True)
    canvas.text(MARGIN, 60, subtitle, 11, FAINT)
    top = float(HEADER)
    for block, height in zip(blocks, heights, strict=True):
        _draw_block(canvas, block, top)
        top += height
    if scores:
        _draw_scores(canvas, scores, top)
    canvas.text(MARGIN, total - footer + 4, caption, 9, FAINT)
    return canvas.figure


def _column_width(block: SheetBlock) -> float:
    """Pixels per column; the photos are a column too."""
    count = len(block.columns) + 1
    return (WIDTH - 2 * MARGIN - GAP * (count - 1)) / count


def _strip_height(block: SheetBlock) -> float:
    """Height of the row of depth maps."""
    height, width = block.photos.shape[-2:]
    return _column_width(block) / NUM_DEPTH_MAPS * height / width


def _block_height(block: SheetBlock) -> float:
    return BLOCK_HEAD + _column_width(block) / CLOUD_ASPECT + 6 + _strip_height(block) + BLOCK_FOOT


def _draw_block(canvas: _Canvas, block: SheetBlock, top: float) -> None:
    """Heading, then one column for the photos and one per method."""
    width = _column_width(block)
    views = torch.linspace(0, len(block.photos) - 1, min(NUM_DEPTH_MAPS, len(block.photos))).round().long()
    low, high = depth_range(block.columns[0].depth)
    canvas.text(MARGIN, top, block.title, 14, bold=True)
    top += 34
    _draw_head(canvas, MARGIN, top, "Photos", "all views; below, those of the depth maps")
    _draw_grid(canvas, block.photos, MARGIN, top + BLOCK_HEAD - 34, width)
    _draw_strip(canvas, block, [_pixels(block.photos[i]) for i in views], MARGIN, top, {})
    for index, column in enumerate(block.columns):
        x = MARGIN + (index + 1) * (width + GAP)
        _draw_head(canvas, x, top, column.title, column.subtitle)
        axes = canvas.axes(x, top + BLOCK_HEAD - 34, width, width / CLOUD_ASPECT)
        draw_cloud(axes, column.cloud, column.pyramids, block.viewpoint)
        depths = [column.depth[i].cpu().numpy() for i in views]
        _draw_strip(canvas, block, depths, x, top, {"cmap": "magma_r", "vmin": low, "vmax": high})


def _draw_head(canvas: _Canvas, x: float, top: float, title: str, subtitle: str) -> None:
    canvas.text(x, top, title, 11.5, bold=True)
    canvas.text(x, top + 22, subtitle, 9.5, FAINT)


def _draw_grid(canvas: _Canvas, photos: Tensor, x: float, top: float, width: float, gap: int = 3) -> None:
    """All photos in a box of the clouds' size, as large as they fit."""
    height = width / CLOUD_ASPECT
    aspect = photos.shape[-1] / photos.shape[-2]
    count = len(photos)

    def cell_width(columns: int) -> float:
        return min(width / columns, height / math.ceil(count / columns) * aspect)

    columns = max(range(1, count + 1), key=cell_width)
    cell = cell_width(columns)
    for index, photo in enumerate(photos):
        row, column = divmod(index, columns)
        axes = canvas.axes(x + column * cell, top + row * cell / aspect, cell - gap, cell / aspect - gap)
        axes.imshow(_pixels(photo), aspect="auto", interpolation="lanczos")


def _draw_strip(
    canvas: _Canvas, block: SheetBlock, pictures: list, x: float, top: float, style: dict, gap: int = 3
) -> None:
    """A row of small pictures under a column's cloud."""
    cell, height = _column_width(block) / NUM_DEPTH_MAPS, _strip_height(block)
    top += BLOCK_HEAD - 34 + _column_width(block) / CLOUD_ASPECT + 6
    for index, picture in enumerate(pictures):
        axes = canvas.axes(x + index * cell, top, cell - gap, height - gap * height / cell)
        axes.set_facecolor("#e5e7eb")  # shows where depth is NaN
        axes.imshow(picture, aspect="auto", interpolation="nearest", **style)


def _draw_scores(canvas: _Canvas, scores: dict[str, Tensor], top: float) -> None:
    """The two score panels over the whole width."""
    canvas.text(MARGIN, top, "Head sensitivity scores (HeSS)", 14, bold=True)
    width = (WIDTH - 2 * MARGIN - 190) / 2
    panels = [canvas.axes(MARGIN + 36 + i * (width + 50), top + 62, width, SCORES - 140) for i in range(2)]
    bar = canvas.axes(WIDTH - MARGIN - 60, top + 78, 14, SCORES - 156)
    draw_score_panels(panels, bar, scores)


def depth_range(depth: Tensor) -> tuple[float, float]:
    """What depth maps of a scene are coloured over: the 2 and 98 % quantiles of the known depths."""
    known = depth[torch.isfinite(depth)].flatten().float().sort().values
    if not len(known):
        return 0.0, 1.0
    last = len(known) - 1
    return float(known[round(0.02 * last)]), float(known[round(0.98 * last)])


def _pixels(photo: Tensor):  # type: ignore[no-untyped-def]
    """[3, height, width] as the array [height, width, 3] that imshow takes."""
    return photo.permute(1, 2, 0).clamp(0, 1).cpu().numpy()
