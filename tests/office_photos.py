"""The bundled photos of an office as views in memory, small enough to make data sets of for tests.

Conventions: OpenCV cameras, world to camera, integers at pixel centres, depth along z with 0 = unknown.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

OFFICE = Path(__file__).parents[1] / "hess_plugin" / "assets" / "hololens_office"
_PLY_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


@dataclass(frozen=True)
class OfficeView:
    """One photo with what is known of it."""

    rgb: np.ndarray  # [h, w, 3] uint8
    depth: np.ndarray  # [h, w] float64
    K: np.ndarray  # [3, 3]
    world_to_camera: np.ndarray  # [4, 4]

    @property
    def center(self) -> np.ndarray:
        """Of the camera, in the world, [3]."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    def unproject(self) -> tuple[np.ndarray, np.ndarray]:
        """World points [N, 3] of the pixels with depth, and their colours [N, 3]."""
        rows, columns = np.nonzero(self.depth > 0)
        z = self.depth[rows, columns]
        x, y = ((p - self.K[i, 2]) / self.K[i, i] * z for i, p in enumerate((columns, rows)))
        rotation, translation = self.world_to_camera[:3, :3], self.world_to_camera[:3, 3]
        return (np.stack([x, y, z], 1) - translation) @ rotation, self.rgb[rows, columns]


def office_views(count: int, stride: int, rank: int = 0) -> list[OfficeView]:
    """So many views that look at the same things, at 1/stride of their size: those nearest to one of them.

    `rank` 0 is the view with the most depth, 1 the one with the second most, and so on.
    """
    views = _all_views()
    cover = [(view.depth > 0).mean() for view in views]
    first = views[sorted(range(len(views)), key=lambda i: -cover[i])[rank]]
    near = sorted(range(len(views)), key=lambda i: np.linalg.norm(views[i].center - first.center))
    return [shrink(views[i], stride) for i in sorted([i for i in near if cover[i] > 0.05][:count])]


def shrink(view: OfficeView, stride: int) -> OfficeView:
    """The view at 1/stride of its size, exactly for an odd stride: a block's depth is its centre pixel's."""
    h, w = (n // stride for n in view.depth.shape)
    half = stride // 2
    blocks = view.rgb[: h * stride, : w * stride].reshape(h, stride, w, stride, 3)
    return replace(
        view,
        rgb=np.rint(blocks.mean((1, 3))).astype(np.uint8),
        depth=view.depth[half : h * stride : stride, half : w * stride : stride],
        K=np.array([[1, 0, -half], [0, 1, -half], [0, 0, stride]]) / stride @ view.K,
    )


def turn_clockwise(view: OfficeView) -> OfficeView:
    """The view of the same world from a camera rolled by 90 degrees: landscape becomes portrait."""
    (fx, _, cx), (_, fy, cy), _ = view.K
    roll = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return OfficeView(
        np.rot90(view.rgb, -1),
        np.rot90(view.depth, -1),
        np.array([[fy, 0, view.depth.shape[0] - 1 - cy], [0, fx, cx], [0, 0, 1.0]]),
        roll @ view.world_to_camera,
    )


def write_ply(path: Path, xyz: np.ndarray, rgb: np.ndarray) -> None:
    """Binary little-endian PLY of coloured points."""
    points = np.empty(len(xyz), _PLY_VERTEX)
    points["xyz"], points["rgb"] = xyz, rgb
    properties = [f"float {axis}" for axis in "xyz"] + [
        f"uchar {color}" for color in ("red", "green", "blue")
    ]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property {each}" for each in properties] + ["end_header", ""]
    path.write_bytes("\n".join(lines).encode() + points.tobytes())


@functools.cache
def _all_views() -> tuple[OfficeView, ...]:
    record = json.loads((OFFICE / "cameras.json").read_text())
    return tuple(_read(entry, record["depth_scale"]) for entry in record["views"])


def _read(entry: dict, depth_scale: float) -> OfficeView:
    with Image.open(OFFICE / entry["image"]) as photo, Image.open(OFFICE / entry["depth"]) as depth:
        rgb, values = np.asarray(photo.convert("RGB")), np.asarray(depth).astype(np.float64)
    return OfficeView(rgb, values / depth_scale, np.array(entry["K"]), np.array(entry["world_to_camera"]))
