"""StreamVGGT: VGGT whose global attention is causal in time (`streamvggt.models.streamvggt.StreamVGGT`).

Calibration works, sparse attention does not. Tested on a double with the documented module tree, not on the
original package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PointSource
from .base import Reconstruction
from .vggt import VggtBackbone, masked_global_blocks

# Name in VGGT's outputs -> name in the dict of one view.
_PER_VIEW = {
    "pose_enc": "camera_pose",
    "world_points": "pts3d_in_other_view",
    "world_points_conf": "conf",
    "depth": "depth",
    "depth_conf": "depth_conf",
}


class StreamVggtBackbone(VggtBackbone):
    """Tokens, projections and heads of VGGT; every global attention takes a mask or a cache of past views.

    Over a whole sequence it gets a dense mask [T, T] that hides later views; view by view, fewer queries than
    keys. Sparse attention here knows no mask and wants a query for every key, so it is refused from the
    start. Sensitivity is measured with whole sequences.
    """

    name = "streamvggt"
    dense_only = (
        "its global attention is causal: view by view with a cache, or under a mask over the whole sequence, "
        "neither of which sparse attention supports. Its heads can be calibrated; run the model dense."
    )

    def matches(self, model: nn.Module) -> bool:
        """The module tree of VGGT, all global attentions with an `attn_mask`."""
        return masked_global_blocks(model) == {True}

    def predict(self, model: Any, images: Tensor) -> Any:
        """The whole sequence at once; the original takes a list with a dict for each view."""
        return model([{"img": view} for view in images.unbind(1)])

    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """From `ress`, a dict for each view, by VGGT's rules once it is packed again.

        Raises:
            ValueError: outputs without pose, or with neither points nor depth.
        """
        views = outputs["ress"] if isinstance(outputs, Mapping) else outputs
        packed = {
            name: torch.stack([view[key] for view in views], dim=1)
            for name, key in _PER_VIEW.items()
            if all(key in view for view in views)
        }
        return super().reconstruct(packed, point_source)
