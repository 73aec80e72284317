"""Point cloud metrics. They read numbers only: predicted and true points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry.similarity import umeyama


def aligned_point_error(predicted: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Median distance of corresponding points after alignment by the best similarity, in units of truth.

    Predicted and true points correspond pixel by pixel, so a wrong pixel is not excused by a neighbour.

    Args:
        predicted: [..., 3], for example [V, height, width, 3].
        truth: [..., 3], of the same shape.
        mask: [...] bool, where both are known; points elsewhere are not read.

    Returns:
        The median; of an even number of points the mean of the two in the middle.

    Raises:
        ValueError: for shapes that differ, fewer than three points left by the mask, values there that are
            not finite, or points on one line.

    Example:
        A prediction at half the scale is perfect after alignment:

        >>> truth = torch.eye(3)
        >>> round(aligned_point_error(truth / 2, truth, torch.ones(3, dtype=torch.bool)), 6)
        0.0
    """
    if predicted.shape != truth.shape or truth.shape != (*mask.shape, 3) or mask.dtype != torch.bool:
        raise ValueError(
            "predicted and truth must be [..., 3] and mask [...] bool, got "
            f"{list(predicted.shape)}, {list(truth.shape)} and {list(mask.shape)} {mask.dtype}."
        )
    predicted, truth = predicted[mask].double(), truth[mask].double()
    aligned = umeyama(predicted, truth).apply(predicted)
    return float(np.median((aligned - truth).norm(dim=-1).cpu().numpy()))
