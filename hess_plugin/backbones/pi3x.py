"""Pi3X: π³ with metric scale and optional known depths, rays and poses (`pi3.models.pi3x.Pi3X`).

Tested on a double with the documented module tree, not on the original package.
"""

from __future__ import annotations

from torch import nn

from .pi3 import Pi3Backbone, has_pi3_trunk, is_metric


class Pi3XBackbone(Pi3Backbone):
    """Attention, tokens and outputs of π³: the odd blocks of `decoder`, five registers before the patches.

    Points, camera points and poses come out already multiplied by the metric scale, so nothing is left to
    do; confidence is a logit, poses are camera-to-world.

    Only `decoder` becomes sparse. Given poses, the original runs more attention over all views, in
    `pose_inject_blk`: over patch tokens alone and possibly masked. It stays dense. Calibration gives the
    model images alone.
    """

    name = "pi3x"

    def matches(self, model: nn.Module) -> bool:
        """The trunk of π³ with a `metric_decoder`."""
        return has_pi3_trunk(model) and is_metric(model)
