"""Miniature DTU trees in the real on-disk formats, from the bundled photos of an office.

`write_pointmap`, `write_training` and `write_official` write the point-map protocol's tree, MVSNet's training
tree and the ground truth of the official evaluation. Traps of the real files are written on purpose: NaN,
infinity and 0 for unknown depth; masks of another size than the depth map; two, three and four numbers on the
depth line of cameras; blanks at the ends of lines; image names that count from 1 where all else counts from
0.

What they cannot show: sizes and noise of the real files; the "object" of a mask is an ellipse.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io
from office_photos import OfficeView, office_views, write_ply
from PIL import Image

MEDIAN_DEPTH = 680.0  # mm; DTU's depths lie in 425 to 935
DEPTH_LINE = (425.0, 2.5, 192, 902.5)
LIGHTS = 7


@functools.cache
def views_in_mm(count: int = 5, stride: int = 3) -> tuple[OfficeView, ...]:
    """Views of the office, scaled to DTU's unit and distances."""
    views = office_views(count, stride)
    scale = MEDIAN_DEPTH / np.median(np.concatenate([view.depth[view.depth > 0] for view in views]))
    scaling = np.array([[1, 1, 1, scale]] * 3 + [[1, 1, 1, 1]])
    return tuple(
        replace(view, depth=view.depth * scale, world_to_camera=view.world_to_camera * scaling)
        for view in views
    )


def write_trees(root: Path) -> Path:
    """Folders `pointmap` (scan 1 of 5 views with a cloud, 2 and 3 of 2 views) and `training` (scan 2)."""
    views = views_in_mm()
    write_pointmap(root / "pointmap", views)
    for scan in (2, 3):
        write_pointmap(root / "pointmap", views[:2], scan)
    write_official(root / "pointmap", surface_points(views))
    write_training(root / "training", views, scan=2)
    return root


def write_pointmap(root: Path, views: Sequence[OfficeView], scan: int = 1) -> None:
    """`scanN` of the point-map protocol; see the top of this file."""
    folders = [root / f"scan{scan}" / name for name in ("images", "cams", "depths", "binary_masks")]
    images, cams, depths, masks = folders
    for folder in folders:
        folder.mkdir(parents=True)
    for index, view in enumerate(views):
        unknown = (np.nan, np.inf, 0.0, -np.inf)[index % 4]
        depth = np.where(view.depth > 0, view.depth, unknown).astype(np.float32)
        Image.fromarray(view.rgb).save(images / f"{index:08d}.jpg", quality=95)
        np.save(depths / f"{index:08d}.npy", depth)
        mask = object_mask(depth.shape).repeat(1 + index % 2, 0).repeat(1 + index % 2, 1)
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{index:08d}.png")
        write_camera(cams / f"{index:08d}_cam.txt", view, numbers=2 + index % 3)
    write_pairs(root / f"scan{scan}" / "pair.txt", views)


def object_mask(shape: tuple[int, ...]) -> np.ndarray:
    """[h, w] bool: an ellipse that fills most of the image and is cut off by its lower edge."""
    rows, columns = (np.linspace(-1, 1, length) for length in shape)
    return (rows[:, None] - 0.2) ** 2 + columns**2 < 0.9


def write_training(root: Path, views: Sequence[OfficeView], scan: int = 1) -> None:
    """MVSNet's training tree with all lights, each a little darker; call it again for other scans."""
    folders = [
        root / "Cameras/train",
        root / f"Depths/scan{scan}_train",
        root / f"Rectified/scan{scan}_train",
    ]
    cams, depths, images = folders
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=folder == cams)
    for index, view in enumerate(views):
        height, width = (length // 4 * 4 for length in view.depth.shape)
        depth = view.depth[:height:4, :width:4]
        write_pfm(depths / f"depth_map_{index:04d}.pfm", depth)
        mask = object_mask(depth.shape).astype(np.uint8) * 255
        Image.fromarray(mask).save(depths / f"depth_visual_{index:04d}.png")
        for light in range(LIGHTS):
            Image.fromarray(lit(view.rgb[:height, :width], light)).save(
                images / f"rect_{index + 1:03d}_{light}_r5000.png"
            )
        quarter = np.diag([0.25, 0.25, 1.0]) @ view.K
        write_camera(cams / f"{index:08d}_cam.txt", replace(view, K=quarter), numbers=2)
    write_pairs(root / "Cameras" / "pair.txt", views)


def lit(rgb: np.ndarray, light: int) -> np.ndarray:
    """The photo as `write_training` writes it for a light."""
    return np.rint(rgb * (1 - 0.08 * light)).astype(np.uint8)


def write_official(root: Path, points: np.ndarray, scan: int = 1) -> None:
    """Cloud, observation mask (cells of 10 mm around the points) and ground plane of the official set."""
    (root / "Points/stl").mkdir(parents=True, exist_ok=True)
    (root / "ObsMask").mkdir(exist_ok=True)
    write_ply(root / f"Points/stl/stl{scan:03d}_total.ply", points, np.zeros((len(points), 3)))
    resolution = 10.0
    box = np.stack([points.min(0) - resolution, points.max(0) + resolution])
    cells = np.zeros(np.ceil((box[1] - box[0]) / resolution).astype(int) + 1, np.uint8)
    cells[tuple(np.rint((points - box[0]) / resolution).astype(int).T)] = 1
    content = {"ObsMask": cells, "BB": box, "Res": [[resolution]], "Margin": [[10.0]]}
    scipy.io.savemat(root / f"ObsMask/ObsMask{scan}_10.mat", content, do_compression=True)
    plane = [[0.0], [0.0], [1.0], [-np.percentile(points[:, 2], 2)]]
    scipy.io.savemat(root / f"ObsMask/Plane{scan}.mat", {"P": plane})


def surface_points(views: Sequence[OfficeView], step: int = 5) -> np.ndarray:
    """World points [N, 3] (mm) of every `step`-th pixel with depth, of all views."""
    return np.concatenate([view.unproject()[0][::step] for view in views])


def write_camera(path: Path, view: OfficeView, numbers: int) -> None:
    """MVSNet's camera file with so many numbers (2 to 4) on its depth line, blanks at the ends of lines."""

    def rows(matrix: np.ndarray) -> str:
        return "".join(" ".join(f"{value:.9g}" for value in row) + " \n" for row in matrix)

    depth_line = " ".join(f"{value:g}" for value in DEPTH_LINE[:numbers])
    path.write_text(f"extrinsic\n{rows(view.world_to_camera)}\nintrinsic\n{rows(view.K)}\n{depth_line} \n")


def write_pairs(path: Path, views: Sequence[OfficeView]) -> None:
    """`pair.txt`: for each view up to ten neighbours with scores, nearest first."""
    lines = [str(len(views))]
    for index, view in enumerate(views):
        distances = [np.linalg.norm(view.center - other.center) for other in views]
        nearest = [int(j) for j in np.argsort(distances, kind="stable") if j != index][:10]
        scores = " ".join(f"{j} {1000 / (1 + rank):.4f}" for rank, j in enumerate(nearest))
        lines += [str(index), f"{len(nearest)} {scores} "]
    path.write_text("\n".join(lines) + "\n")


def write_pfm(path: Path, values: np.ndarray) -> None:
    """One channel, bottom row first, little endian, a blank after the size as some writers have it."""
    header = f"Pf\n{values.shape[1]} {values.shape[0]} \n-1.000000\n".encode()
    path.write_bytes(header + values[::-1].astype("<f4").tobytes())
