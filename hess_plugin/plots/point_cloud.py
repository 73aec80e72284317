"""From point maps to clouds and camera pyramids that any 3D viewer opens.

Convention: that of `hess_plugin.geometry.cameras` (OpenCV axes, extrinsics map world to camera).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.cameras import camera_centers, invert_rigid
from ..geometry.similarity import Similarity

PYRAMID_FACES = [(0, 2, 1), (0, 3, 2), (0, 4, 3), (0, 1, 4), (1, 2, 3), (1, 3, 4)]  # corners of `frustums`
CAMERA_COLOR = (214, 39, 40)


@dataclass(frozen=True)
class PointCloud:
    """Coloured points in a world frame."""

    points: Tensor  # [N, 3] float32
    colors: Tensor  # [N, 3] float32 in [0, 1]
    normals: Tensor  # [N, 3] float32 unit vectors, on the side that was photographed

    def seen_from(self, eye: Tensor) -> Tensor:
        """Whether each point shows that side [N] bool to an eye [3]: walls in front of a room do not."""
        return ((eye.to(self.points) - self.points) * self.normals).sum(dim=-1) > 0


def clean_mask(
    depth: Tensor,  # [V, height, width]
    confidence: Tensor,  # [V, height, width], higher is better
    drop_share: float = 0.2,
    max_jump: float = 0.06,
) -> Tensor:  # [V, height, width] bool
    """Pixels worth showing: all but the least confident share, and none at a jump of depth.

    At an occluding edge a network puts points between front and back; `max_jump` is the largest change of
    depth to a direct neighbour, relative to the nearer of the two. Both numbers are for the eye, no metrics.
    """
    if depth.shape != confidence.shape or depth.ndim != 3:
        raise ValueError(
            f"depth and confidence must both be [V, height, width], got {list(depth.shape)} and "
            f"{list(confidence.shape)}."
        )
    keep = (depth > 0) & torch.isfinite(depth)
    keep &= confidence >= _quantile(confidence, drop_share)
    for dim in (1, 2):
        first, second = depth.narrow(dim, 0, depth.shape[dim] - 1), depth.narrow(dim, 1, depth.shape[dim] - 1)
        jump = (first - second).abs() > max_jump * torch.minimum(first, second)
        keep.narrow(dim, 0, depth.shape[dim] - 1).logical_and_(~jump)
        keep.narrow(dim, 1, depth.shape[dim] - 1).logical_and_(~jump)
    return keep


def _quantile(values: Tensor, share: float) -> Tensor:
    """`torch.quantile` without its limit on the number of elements."""
    flat = values.flatten().float()
    return flat.kthvalue(min(int(share * len(flat)) + 1, len(flat))).values


def colored_cloud(images: Tensor, points: Tensor, mask: Tensor, extrinsics: Tensor) -> PointCloud:
    """The points [V, height, width, 3] where mask, coloured by the photos [V, 3, height, width] in [0, 1].

    Normals are turned to the cameras [V, 3, 4], which are in the points' frame.
    """
    normals = surface_normals(points, camera_centers(extrinsics))
    return PointCloud(points[mask].float(), images.permute(0, 2, 3, 1)[mask].float(), normals[mask])


def surface_normals(points: Tensor, centers: Tensor) -> Tensor:
    """Unit normals [V, height, width, 3] float32 of point maps, on the side of their cameras [V, 3].

    By differences between neighbours; where there are none, or they are not finite, towards the camera.
    """
    toward = F.normalize((centers[:, None, None] - points).float(), dim=-1).nan_to_num()
    if min(points.shape[1:3]) < 2:
        return toward
    down, right = torch.gradient(points.float(), dim=(1, 2))
    normals = F.normalize(torch.linalg.cross(down, right), dim=-1)
    flat = normals.isfinite().all(dim=-1, keepdim=True) & (normals != 0).any(dim=-1, keepdim=True)
    normals = torch.where(flat, normals, toward)
    return torch.where((normals * toward).sum(dim=-1, keepdim=True) < 0, -normals, normals)


def move_cameras(extrinsics: Tensor, similarity: Similarity) -> Tensor:
    """World-to-camera [V, 3, 4] of cameras carried along by a similarity of the world.

    With x -> s G x + t a camera at c with axes Rᵀ comes to stand at s G c + t with axes G Rᵀ: it stays rigid.
    """
    pose = invert_rigid(extrinsics.double())  # camera to world
    rotation = similarity.rotation.double() @ pose[..., :3]
    center = similarity.apply(pose[..., 3])
    return invert_rigid(torch.cat([rotation, center.to(rotation)[..., None]], dim=-1)).to(extrinsics)


def frustums(
    extrinsics: Tensor,  # [V, 3, 4]
    intrinsics: Tensor,  # [V, 3, 3]
    image_size: tuple[int, int],
    length: float,
) -> Tensor:  # [V, 5, 3]
    """Viewing pyramids in the world: the camera centre, then the image corners at distance `length`.

    Corner order: top left, top right, bottom right, bottom left; corners of the outer pixels' outer edges.
    """
    height, width = image_size
    u = torch.tensor([-0.5, width - 0.5, width - 0.5, -0.5])
    v = torch.tensor([-0.5, -0.5, height - 0.5, height - 0.5])
    pixels = torch.stack([u, v, torch.ones(4)], dim=-1).to(intrinsics)  # [4, 3]
    corners = length * pixels @ intrinsics.inverse().mT  # [V, 4, 3], camera frame
    pyramid = torch.cat([torch.zeros_like(corners[:, :1]), corners], dim=1)
    pose = invert_rigid(extrinsics)
    return pyramid @ pose[..., :3].mT + pose[:, None, :, 3]


def write_cloud(path: str | Path, cloud: PointCloud) -> Path:
    """Write a binary PLY of coloured points."""
    _mesh_of_points(cloud).export(path)
    return Path(path)


def write_frustums(path: str | Path, pyramids: Tensor) -> Path:
    """Write viewing pyramids [V, 5, 3] as one coloured PLY mesh, to be opened together with the cloud."""
    _mesh_of_pyramids(pyramids).export(path)
    return Path(path)


def write_glb(path: str | Path, cloud: PointCloud, pyramids: Tensor) -> Path:
    """Write points and viewing pyramids [V, 5, 3] as one GLB.

    glTF has +y up and looks along -z: the world is turned by half a turn about x to stand upright.
    """
    parts = {"points": _mesh_of_points(cloud), "cameras": _mesh_of_pyramids(pyramids)}
    if not len(cloud.points):
        del parts["points"]  # glTF has no empty clouds
    for part in parts.values():
        part.apply_transform(torch.tensor([1.0, -1.0, -1.0, 1.0]).diag().numpy())
    _trimesh().Scene(parts).export(path, file_type="glb")
    return Path(path)


def _mesh_of_points(cloud: PointCloud) -> Any:
    colors = (cloud.colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return _trimesh().PointCloud(cloud.points.cpu().numpy(), colors=colors)


def _mesh_of_pyramids(pyramids: Tensor) -> Any:
    faces = torch.tensor(PYRAMID_FACES) + 5 * torch.arange(len(pyramids))[:, None, None]
    vertices = pyramids.flatten(0, 1).cpu().numpy()
    colors = [(*CAMERA_COLOR, 255)] * len(vertices)
    return _trimesh().Trimesh(vertices, faces.flatten(0, 1).numpy(), vertex_colors=colors, process=False)


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError('PLY and GLB files need trimesh; pip install "hess-plugin[demo]".') from error
    return trimesh
