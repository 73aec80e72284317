"""Alignment of point clouds without known correspondences: coarse by FPFH features, fine by ICP (Open3D)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .consensus import Alignment, AlignmentError, align_by_consensus
from .similarity import Similarity

MIN_POINTS = 30  # of a thinned cloud; fewer have no shape to speak of
MIN_FITNESS = 0.1  # of `align_by_features`; clouds of different scenes mostly stay below
MIN_PAIRS = 12  # of features that agree, because a few agree by chance

_MOST_POINTS = 50_000  # of a cloud that are read, drawn by seed
# Edges of the cells that points are averaged in, in units of the target's size; coarse for fuzzy clouds.
_FEATURE_CELLS, _ICP_CELL = (1 / 12, 1 / 6), 1 / 32
_ICP_STEPS = 30


def cloud_size(points: Tensor) -> float:
    """Median distance of points [N, 3] from their median in each axis: outliers hardly change it."""
    return float((points - _middle(points)).norm(dim=-1).median())


def _middle(points: Tensor) -> Tensor:
    """Median of points [N, 3] in each axis; `median` along an axis has no deterministic kernel on a GPU."""
    return points.sort(dim=0).values[(len(points) - 1) // 2]


def align_by_features(
    source: Tensor,
    target: Tensor,
    *,
    scale: float | None = None,
    viewpoints: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Alignment:
    """Similarity that brings `source` [N, 3] onto `target` [M, 3], found by FPFH features and RANSAC.

    Both clouds are thinned to cells of 1/12 of the target's size and described by Fast Point Feature
    Histograms. Points that are each other's nearest in the space of features form pairs; RANSAC looks for the
    similarity that most pairs agree with, to 1.5 cells. If too few agree, as for fuzzy clouds, cells of 1/6
    are tried. Some may agree by chance: a caller that knows more (cameras, say) should check the result.

    Args:
        source, target: at most 50,000 points of each are read.
        scale: first guess of the scale, needed because FPFH is not invariant to it; right to a factor of
            about 1.3. None takes the ratio of the clouds' sizes, good when both show the same.
        viewpoints: one place [3] in each cloud's frame, the same in the world, towards which normals are
            turned. None takes the medians of the clouds.
        seed: of all that is drawn.

    Returns:
        `Alignment`, its fitness the share of pairs that agree. The same bits for any number of threads.

    Raises:
        AlignmentError: too few points or pairs, points on one line, or too few pairs agree.
        ImportError: Open3D is missing.
    """
    clouds = [_drawn(name, cloud, seed) for name, cloud in (("source", source), ("target", target))]
    places = [_middle(cloud) for cloud in clouds] if viewpoints is None else viewpoints
    size = cloud_size(clouds[1])
    scale = size / cloud_size(clouds[0]) if scale is None else scale
    factors = scale / size, 1 / size
    unit = [
        (factor * cloud.cpu(), factor * place.double().cpu())
        for cloud, place, factor in zip(clouds, places, factors, strict=True)
    ]
    found = _align_normalised(unit[0], unit[1], seed)
    inner = found.transform
    transform = Similarity(inner.scale * scale, inner.rotation, inner.translation * size)
    return Alignment(transform, found.fitness, found.rmse * size)


def _align_normalised(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], seed: int) -> Alignment:
    """The same for pairs of points and viewpoint in units of the target's size."""
    for cell in _FEATURE_CELLS:
        try:
            matched = _matched(source, target, cell)
            found = align_by_consensus(*matched, 1.5 * cell, seed)
        except AlignmentError as error:
            failure = error
            continue
        pairs = len(matched[0])
        agreeing, needed = round(found.fitness * pairs), max(MIN_PAIRS, math.ceil(MIN_FITNESS * pairs))
        if agreeing >= needed:
            return found
        failure = AlignmentError(
            f"{agreeing} of {pairs} matched features agree on one alignment, but at least {needed} must; do "
            "both clouds show the same scene?"
        )
    raise failure


def refine_by_icp(
    source: Tensor, target: Tensor, start: Similarity, radius: float, seed: int = 0
) -> Alignment:
    """Improve an alignment by point-to-plane ICP, on clouds thinned to cells of 1/32 of the target's size.

    The refinement is rigid: rotation and translation change, the scale is that of `start`. It is kept only if
    it lowers the mean of min(d², radius²), d being a thinned source point's distance to the thinned target:
    this counts inliers and their distances alike. Otherwise `start` comes back, with its own figures.

    Args:
        source: [N, 3].
        target: [M, 3], whose normals are estimated.
        start: brings `source` near `target`.
        radius: points farther apart are no inliers, in units of the target.
        seed: of the draw of points.

    Returns:
        `Alignment` whose fitness is the share of thinned source points within `radius` of the thinned target.
        The same bits for the same input on one machine, for any number of threads.

    Raises:
        AlignmentError: too few points or points on one line.
        ImportError: Open3D is missing.
    """
    clouds = [_drawn(name, cloud, seed) for name, cloud in (("source", source), ("target", target))]
    first = Similarity(*(part.double().cpu() for part in (start.scale, start.rotation, start.translation)))
    before, after = _icp(first.apply(clouds[0].cpu()), clouds[1].cpu(), radius)
    if not _cost(after, radius) < _cost(before, radius):  # NaN is not less
        return Alignment(first, before.fitness, before.inlier_rmse)
    motion = torch.tensor(after.transformation)
    turn, shift = motion[:3, :3], motion[:3, 3]
    transform = Similarity(first.scale, turn @ first.rotation, turn @ first.translation + shift)
    return Alignment(transform, after.fitness, after.inlier_rmse)


def _icp(source: Tensor, target: Tensor, radius: float) -> tuple[Any, Any]:
    """Open3D's results for thinned clouds: without moving the source, and after point-to-plane ICP."""
    o3d = load_open3d()
    registration = o3d.pipelines.registration
    cell = _ICP_CELL * cloud_size(target)
    with one_thread():
        moved, fixed = _thinned(o3d, source, cell), _thinned(o3d, target, cell)
        fixed.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(radius=3 * cell, max_nn=30))
        before = registration.evaluate_registration(moved, fixed, radius)
        after = registration.registration_icp(
            moved,
            fixed,
            radius,
            estimation_method=registration.TransformationEstimationPointToPlane(),
            criteria=registration.ICPConvergenceCriteria(max_iteration=_ICP_STEPS),
        )
    return before, after


def _drawn(name: str, points: Tensor, seed: int) -> Tensor:
    """At most `_MOST_POINTS` of a cloud in float64, where it is; AlignmentError for a cloud without shape."""
    if points.ndim != 2 or points.shape[-1] != 3 or not torch.isfinite(points).all():
        raise ValueError(f"{name} must be [N, 3] and finite, got {list(points.shape)}; leave bad points out.")
    if len(points) > _MOST_POINTS:
        generator = torch.Generator().manual_seed(seed)
        points = points[torch.randint(len(points), (_MOST_POINTS,), generator=generator).to(points.device)]
    points = points.double()
    if len(points) < MIN_POINTS:
        raise AlignmentError(f"{name} holds {len(points)} points; an alignment needs at least {MIN_POINTS}.")
    spread = torch.linalg.svdvals(points - points.mean(0))
    if cloud_size(points) == 0 or spread[1] < 1e-6 * spread[0]:
        raise AlignmentError(f"{name} points lie on one line or in one place, so no rotation can be told.")
    return points


def _thinned(o3d: Any, points: Tensor, cell: float) -> Any:
    """Open3D cloud of the means of the points in each cell."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy()))
    return cloud.voxel_down_sample(cell)


def _matched(
    source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], cell: float
) -> tuple[Tensor, Tensor]:
    """Points [K, 3] of source and target whose features are each other's nearest, row by row."""
    o3d = load_open3d()
    with one_thread():
        described = [_described(o3d, *cloud, cell) for cloud in (source, target)]
        pairs = o3d.pipelines.registration.correspondences_from_features(
            *(features for _, features in described), mutual_filter=True, mutual_consistency_ratio=0.0
        )
    index = torch.from_numpy(np.array(pairs)).long()
    return described[0][0][index[:, 0]], described[1][0][index[:, 1]]


def _described(o3d: Any, points: Tensor, viewpoint: Tensor, cell: float) -> tuple[Tensor, Any]:
    """Points [n, 3] of the thinned cloud and their FPFH features."""
    near = o3d.geometry.KDTreeSearchParamHybrid
    cloud = _thinned(o3d, points, cell)
    if len(cloud.points) < MIN_POINTS:
        raise AlignmentError(
            f"a cloud fills only {len(cloud.points)} cells of {cell:.2f} of the target's size, features need "
            f"{MIN_POINTS}; is the first guess of the scale right?"
        )
    cloud.estimate_normals(near(radius=2.5 * cell, max_nn=30))
    cloud.orient_normals_towards_camera_location(viewpoint.numpy())
    features = o3d.pipelines.registration.compute_fpfh_feature(cloud, near(radius=5 * cell, max_nn=100))
    return torch.from_numpy(np.array(cloud.points)), features


def _cost(result: Any, radius: float) -> float:
    """Mean of min(d², radius²) of an Open3D registration result."""
    return result.fitness * result.inlier_rmse**2 + (1 - result.fitness) * radius**2


@contextmanager
def one_thread() -> Iterator[None]:
    """Run OpenMP and BLAS in one thread: Open3D's ICP sums in the order in which threads finish."""
    from threadpoolctl import threadpool_limits  # comes with Open3D

    with threadpool_limits(limits=1):
        yield


def load_open3d() -> Any:
    """The module; ImportError names the extra to install, or the library that Open3D lacks."""
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise ImportError(
            'aligning point clouds needs Open3D; pip install "hess-plugin[calibration]". '
            "Known depth (truth='depth') can be aligned without it: icp=False, --no-icp."
        ) from error
    except (ImportError, OSError) as error:  # such as libusb-1.0 for Open3D 0.20 on a slim image
        raise ImportError(
            f"Open3D is installed but does not load: {error}; install the system's package of that library."
        ) from error
    return open3d
