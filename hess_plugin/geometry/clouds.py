"""What protocols do to whole clouds before they compare them: ICP, normals, thinning (Open3D, SciPy)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .registration import load_open3d, one_thread
from .similarity import Similarity

_NEIGHBORS = 30  # that a normal is fitted to: Open3D's default
_AT_ONCE = 100_000  # points whose neighbours are held at a time


def icp_point_to_point(source: Tensor, target: Tensor, radius: float) -> Similarity:
    """Rigid motion that brings `source` [N, 3] onto `target` [M, 3]: Open3D's point-to-point ICP.

    Started from where the clouds are, on all points, with Open3D's own limits on steps. Pairs farther apart
    than `radius` do not count.

    Raises:
        ImportError: Open3D is missing; names the extra to install.
    """
    registration = load_open3d().pipelines.registration
    with one_thread():
        result = registration.registration_icp(
            _cloud(source),
            _cloud(target),
            radius,
            np.eye(4),
            registration.TransformationEstimationPointToPoint(),
        )
    motion = torch.tensor(result.transformation)
    return Similarity(torch.tensor(1.0, dtype=torch.float64), motion[:3, :3], motion[:3, 3])


def estimate_normals(points: Tensor) -> Tensor:
    """Unit normals [N, 3] float64 of a cloud [N, 3], from planes through 30 neighbours; either sign.

    Raises:
        ImportError: Open3D is missing; names the extra to install.
    """
    cloud = _cloud(points)
    search = load_open3d().geometry.KDTreeSearchParamKNN(_NEIGHBORS)
    cloud.estimate_normals(search)
    return torch.from_numpy(np.array(cloud.normals)).to(points.device)


def thin(points: Tensor, spacing: float, seed: int) -> Tensor:
    """The points of a cloud [N, 3] that are left when, in an order drawn by seed, each drops its neighbours.

    No two that are left are nearer than `spacing`, and each that was dropped has one that is left within it.
    The order matters, as in DTU's official evaluation, which draws it without a seed.

    Raises:
        ImportError: SciPy is missing; names the extra to install.
    """
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed)).to(points.device)
    points = points[order]
    array = points.double().cpu().numpy()
    tree = _tree(array)
    kept = np.ones(len(array), dtype=bool)
    for start in range(0, len(array), _AT_ONCE):
        near = tree.query_ball_point(array[start : start + _AT_ONCE], spacing)
        for index, neighbors in enumerate(near, start=start):
            if kept[index]:
                kept[neighbors] = False
                kept[index] = True
    return points[torch.from_numpy(kept).to(points.device)]


def distances(points: Tensor, reference: Tensor) -> Tensor:
    """Distance [N] of each point [N, 3] to the nearest of the reference [M, 3], M >= 1, in the points' dtype.

    By SciPy's tree, for pictures that should come at once: 60k among 450k points took 0.8 s of a CPU, where
    `nearest_neighbors`, which needs nothing but PyTorch, took 5.5 s for 20k of them.

    Raises:
        ImportError: SciPy is missing; names the extra to install.
    """
    found, _ = _tree(reference.cpu().double().numpy()).query(points.cpu().double().numpy())
    return torch.from_numpy(found).to(points)


def _tree(points: np.ndarray) -> Any:
    try:
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise ImportError('point clouds need SciPy; pip install "hess-plugin[report]".') from error
    return cKDTree(points)


def _cloud(points: Tensor) -> Any:
    open3d = load_open3d()
    return open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.double().cpu().numpy()))
