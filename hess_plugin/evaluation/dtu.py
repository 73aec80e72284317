"""DTU's protocols, all in millimetres: how a prediction is brought into the scan's world, and what counts.

Published DTU numbers differ by more than methods do because protocols differ, so each has a name.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..datasets.dtu_truth import DtuGroundTruth
from ..geometry.clouds import estimate_normals, icp_point_to_point, thin
from ..geometry.similarity import Similarity, umeyama
from .compare import Reference
from .mvs import cloud_errors, cut_distances
from .pose import align_cameras
from .predict import Prediction

Alignment = Literal["cameras", "pixels"]
ICP_RADIUS = 100.0  # mm
SPACING = 0.2  # mm, that the official evaluation thins a prediction to
CUTOFF = 20.0  # mm
MOST_POINTS = 4_000_000  # of a prediction, drawn by seed, as Depth Anything 3 does
_BOX_MARGIN = (60.0, 120.0)  # mm below and above the observation mask's box, as in the official code
_SEED = 42


def align_to_truth(prediction: Prediction, reference: Reference, alignment: Alignment) -> Similarity:
    """Similarity from the prediction's world to the scan's: Umeyama on camera centres, or on known pixels."""
    if alignment == "cameras":
        return align_cameras(prediction.extrinsics, reference.extrinsics)
    return umeyama(prediction.points[reference.mask], reference.points[reference.mask])


def pointmap_errors(prediction: Prediction, reference: Reference) -> dict[str, float]:
    """π³'s protocol: known pixels only, against the points of the depth maps; no distance is cut off.

    1. Umeyama with scale on all known pixels of all views together, then point-to-point ICP within 100 mm.
    2. Distances both ways, and normals by Open3D. Depth maps are stored in steps of 2.5 mm, so values near
       1 mm are close to that floor.

    Returns:
        `accuracy`, `completeness`, `chamfer` and the medians of the first two, mm; `normal_consistency`.

    Raises:
        ValueError: no pixel is known, values are not finite, or points lie on one line.
        ImportError: Open3D is missing.
    """
    truth = reference.points[reference.mask].double()
    points = prediction.points[reference.mask].double()
    points = align_to_truth(prediction, reference, "pixels").apply(points)
    points = icp_point_to_point(points, truth, ICP_RADIUS).apply(points)
    errors = cloud_errors(points, truth, (estimate_normals(points), estimate_normals(truth)))
    return errors._asdict() | {"chamfer": errors.chamfer}


def official_errors(
    prediction: Prediction,
    reference: Reference,
    truth: DtuGroundTruth,
    alignment: Alignment = "cameras",
) -> dict[str, float]:
    """DTU's official evaluation of 2014, against the scan's reference cloud.

    The protocol begins with a cloud in DTU's world; how one gets there is not part of it. Here: predicted
    points of known pixels, at most 4 million, aligned by `alignment`. Then:

    1. Thin to 0.2 mm, and keep what lies in the observation mask's box, 60 mm wider below and 120 mm above.
    2. Accuracy: of these, points in cells of the observation mask, to the reference cloud.
    3. Completeness: reference points above the ground plane, to the points of step 1.

    Both are means over distances below 20 mm.

    Returns:
        `accuracy`, `completeness`, `chamfer` (mm; NaN where nothing is nearer than 20 mm), and the shares
        `accuracy_dropped` and `completeness_dropped` of the points beyond.

    Raises:
        ValueError: no pixel is known, no point is left in the mask or above the plane, values are not finite,
            or cameras lie on one line.
        ImportError: SciPy is missing.
    """
    points = prediction.points[reference.mask].double()
    if len(points) > MOST_POINTS:
        drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(_SEED))[:MOST_POINTS]
        points = points[drawn.to(points.device)]
    points = thin(align_to_truth(prediction, reference, alignment).apply(points), SPACING, _SEED)
    low, high = (torch.from_numpy(corner).to(points) for corner in truth.observed.box)
    in_box = ((points >= low - _BOX_MARGIN[0]) & (points < high + _BOX_MARGIN[1])).all(-1)
    points = _not_empty(points[in_box], "in the box of the observation mask")
    seen = torch.from_numpy(truth.observed.contains(points.cpu().numpy())).to(points.device)
    surface = torch.from_numpy(truth.points).to(points)
    above = torch.from_numpy(truth.above_plane(truth.points)).to(points.device)
    accuracy = cut_distances(_not_empty(points[seen], "in the observation mask"), surface, CUTOFF)
    completeness = cut_distances(surface[above], points, CUTOFF)
    return {
        "accuracy": accuracy.mean,
        "completeness": completeness.mean,
        "chamfer": (accuracy.mean + completeness.mean) / 2,
        "accuracy_dropped": accuracy.dropped,
        "completeness_dropped": completeness.dropped,
    }


def _not_empty(points: Tensor, where: str) -> Tensor:
    if len(points) == 0:
        raise ValueError(f"no predicted point lies {where}; does the alignment hold, and is it this scan?")
    return points
