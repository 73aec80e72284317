"""Pictures of reconstructions and scores (needs the extra `demo`); functions take tensors only."""

from .consistency import stability
from .contact_sheet import SheetBlock, SheetColumn, contact_sheet
from .heatmap import score_heatmap
from .point_cloud import PointCloud, clean_mask, colored_cloud, frustums
from .render import Viewpoint, draw_cloud, overview
from .tradeoff import Curve, Line, Panel, tradeoff_figure

__all__ = [
    "Curve",
    "Line",
    "Panel",
    "PointCloud",
    "SheetBlock",
    "SheetColumn",
    "Viewpoint",
    "clean_mask",
    "colored_cloud",
    "contact_sheet",
    "draw_cloud",
    "frustums",
    "overview",
    "score_heatmap",
    "stability",
    "tradeoff_figure",
]
