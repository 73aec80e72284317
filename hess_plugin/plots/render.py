"""Pictures of point clouds and cameras, seen from one stated viewpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.cameras import camera_centers
from .figure import bare
from .point_cloud import PointCloud

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PYRAMID_EDGES = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)]  # corners of `frustums`
CAMERA_LINE = "#d62728"
MAX_DRAWN = 200_000  # points; more would be seen no better at this size


@dataclass(frozen=True)
class Viewpoint:
    """A pinhole camera of focal length 1 that looks at a scene, and the window of its image plane to show."""

    extrinsics: Tensor  # [3, 4], world to camera
    window: tuple[float, float, float, float]  # left, right, bottom, top in focal lengths; y points down

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Image plane coordinates [..., 2] and depth [...] of world points [..., 3]."""
        local = points.to(self.extrinsics) @ self.extrinsics[:, :3].T + self.extrinsics[:, 3]
        return local[..., :2] / local[..., 2:].clamp_min(1e-6), local[..., 2]


def overview(points: Tensor, extrinsics: Tensor, elevation: float = 40.0, aspect: float = 1.25) -> Viewpoint:
    """Behind and above the first camera, looking at the middle of the scene, all cameras in the window.

    Args:
        points: [N, 3] points of the scene.
        extrinsics: [V, 3, 4] its cameras; the mean of their -y axes is taken as up.
        elevation: degrees above the horizontal plane through the middle of the scene.
        aspect: width over height of the window.
    """
    up = F.normalize(-extrinsics[:, 1, :3].mean(dim=0), dim=0)
    centers = camera_centers(extrinsics)
    target = scene_middle(points, extrinsics)
    radius = (points - target).norm(dim=-1).quantile(0.9) if len(points) < 2**24 else points.std() * 2
    back = centers[0] - target
    back = F.normalize(back - (back @ up) * up, dim=0)
    angle = torch.deg2rad(torch.tensor(elevation))
    direction = back * angle.cos() + up * angle.sin()
    reach = torch.maximum((centers - target).norm(dim=-1).max(), radius)
    viewpoint = look_at(target + 2.2 * reach * direction, target, up)
    seen = viewpoint.project(torch.cat([centers, points]))[0]
    cameras, cloud = seen[: len(centers)], seen[len(centers) :: max(1, len(points) // 10_000)]
    low = torch.minimum(cameras.amin(dim=0), cloud.quantile(0.02, dim=0))
    high = torch.maximum(cameras.amax(dim=0), cloud.quantile(0.98, dim=0))
    return Viewpoint(viewpoint.extrinsics, _window(low, high, aspect))


def scene_middle(points: Tensor, extrinsics: Tensor) -> Tensor:
    """Between the middles of the points [N, 3] and of the cameras [V, 3, 4], which room walls do not pull."""
    return (points.median(dim=0).values + camera_centers(extrinsics).median(dim=0).values) / 2


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Viewpoint:
    """A camera [3] at `position` with `target` in the middle of its image and `up` pointing up in it."""
    forward = F.normalize(target - position, dim=0)
    right = F.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return Viewpoint(torch.cat([rotation, -(rotation @ position)[:, None]], dim=1), (-1.0, 1.0, 1.0, -1.0))


def _window(
    low: Tensor, high: Tensor, aspect: float, margin: float = 1.08
) -> tuple[float, float, float, float]:
    """The smallest window of this aspect around a box of the image plane, with a margin."""
    (x, y), (width, height) = ((low + high) / 2).tolist(), ((high - low) * margin).tolist()
    width, height = max(width, height * aspect), max(height, width / aspect)
    return x - width / 2, x + width / 2, y + height / 2, y - height / 2


def draw_cloud(
    axes: Axes, cloud: PointCloud, pyramids: Tensor, viewpoint: Viewpoint, size: float = 1.6
) -> None:
    """Draw the points far to near, and the viewing pyramids [V, 5, 3] as lines on top of them.

    Surfaces that turn their backs are left out, so that one looks into a room and not at its ceiling.

    Args:
        size: diameter in typographic points of a dot at the median depth; nearer ones are larger.
    """
    from matplotlib.collections import LineCollection

    place, depth = viewpoint.project(cloud.points)
    left, right, bottom, top = viewpoint.window
    x, y = place.unbind(-1)
    seen = (
        cloud.seen_from(camera_centers(viewpoint.extrinsics))
        & (depth > 1e-3)
        & (x > left)
        & (x < right)
        & (y > top)
        & (y < bottom)
    )
    order = depth[seen].argsort(descending=True)[:: len(depth) // MAX_DRAWN + 1]
    place, depth = place[seen][order], depth[seen][order]
    bare(axes)
    if len(depth):
        areas = (size * depth.median() / depth) ** 2
        axes.scatter(
            place[:, 0].numpy(),
            place[:, 1].numpy(),
            s=areas.numpy(),
            c=cloud.colors[seen][order].numpy(),
            marker="s",
            linewidths=0,
        )
    corners = viewpoint.project(pyramids)[0]
    segments = corners[:, PYRAMID_EDGES].flatten(0, 1).numpy()
    axes.add_collection(LineCollection(list(segments), colors=CAMERA_LINE, linewidths=0.7, alpha=0.9))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
