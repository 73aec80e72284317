"""A scene as the JSON values that the page reads: points in few bytes, pictures as JPEG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files import finite
from ..geometry.cameras import camera_centers
from ..geometry.clouds import distances
from ..plots import overview
from ..plots.contact_sheet import depth_range
from ..plots.point_cloud import PointCloud
from ..plots.render import scene_middle
from ..tables import count_of
from .results import DENSE_COLUMNS, GROUND_TRUTH_COLUMNS, NAMES, RUN_COLUMNS, TRUTH, SceneResult

MAX_VIEWS = 16  # pictures of a scene, evenly spaced
PICTURE_WIDTH = 220  # pixels
FARTHEST = 20.0  # in the reference's unit; what lies farther from the middle is not drawn
STEPS = 65535  # of a coordinate over the box of its cloud, and of an error over one unit
UNKNOWN_DEPTH = (229, 231, 235)
HIGHER_IS_BETTER = ("auc_30",)


def pack_scene(result: SceneResult, max_points: int, seed: int = 0) -> dict[str, Any]:
    """All that the page shows of a scene.

    Args:
        result: all predictions of the same views.
        max_points: of a cloud, drawn by `seed`.
    """
    reference, images = result.reference, result.scene.images
    known = reference.points[reference.mask]
    eye = camera_centers(overview(known, reference.extrinsics).extrinsics)
    middle = scene_middle(known, reference.extrinsics)
    views = torch.linspace(0, len(images) - 1, min(MAX_VIEWS, len(images))).round().long().tolist()
    depth_ends = depth_range(result.placed[result.shown[0]].depth)
    columns = []
    for method, each in result.placed.items():
        packed = _pack_cloud(each.cloud, each.known, known, middle, reference.unit, max_points, seed)
        is_reference = method == TRUTH or (method == "dense" and not reference.is_ground_truth)
        columns.append(
            packed
            | {
                "method": method,
                "name": NAMES.get(method, method),
                "isReference": is_reference,
                "numbers": {} if method == TRUTH else finite(result.row(method)),
                "pyramids": _rounded(each.pyramids),
                "depth": [_depth_picture(each.depth[view], depth_ends) for view in views],
            }
        )
    height, width = images.shape[-2:]
    about = f"{count_of(len(images), 'view')} of {width} × {height} pixels"
    return {
        "name": result.scene.name,
        "about": about + (f", {len(views)} of them shown below" if len(views) < len(images) else ""),
        "hasTruth": reference.is_ground_truth,
        "unit": reference.unit,
        "middle": middle.tolist(),
        "eye": eye.tolist(),
        "up": (-reference.extrinsics[:, 1, :3].mean(dim=0)).tolist(),
        "metrics": [key for key, *_ in (*result.columns, *RUN_COLUMNS)],
        "columns": columns,
        "views": views,
        "viewNames": [result.scene.view_ids[view] for view in views],
        "photos": [_picture(_bytes(images[view].permute(1, 2, 0))) for view in views],
    }


def metric_headings() -> list[dict[str, Any]]:
    """Columns of the page's table, in order."""
    columns = dict.fromkeys((*GROUND_TRUTH_COLUMNS[:1], *DENSE_COLUMNS, *RUN_COLUMNS))
    return [
        {"key": key, "heading": heading, "digits": int(form[1]), "higherIsBetter": key in HIGHER_IS_BETTER}
        for key, heading, form in columns
    ]


def _pack_cloud(
    cloud: PointCloud, known: Tensor, truth: Tensor, middle: Tensor, unit: float, max_points: int, seed: int
) -> dict[str, Any]:
    """Points drawn by seed, and the distance of each to the nearest point of the reference.

    Coordinates are uint16 over the cloud's box, colours uint8, normals int8 in 1/127. Errors are uint16 over
    one unit; farther ones are cut, those of pixels of which the reference knows nothing count as 0 and are
    not `judged`.
    """
    near = (cloud.points - middle).norm(dim=-1) < FARTHEST * unit
    order = torch.randperm(len(near), generator=torch.Generator().manual_seed(seed))
    index = order[near[order]][:max_points].sort().values
    points, judged = cloud.points[index], known[index]
    errors = torch.zeros(len(index))
    errors[judged] = distances(points[judged], truth) / unit
    low = points.amin(dim=0) if len(points) else torch.zeros(3)
    extent = (points.amax(dim=0) - low).clamp_min(1e-12) if len(points) else torch.ones(3)
    return {
        "total": len(near),
        "far": int((~near).sum()),
        "drawn": len(index),
        "judged": int(judged.sum()),
        "low": low.tolist(),
        "extent": extent.tolist(),
        "positions": _base64(_uint16((points - low) / extent)),
        "colors": _base64(_bytes(cloud.colors[index])),
        "errors": _base64(_uint16(errors)),
        "normals": _base64((127 * cloud.normals[index]).round().to(torch.int8).cpu().numpy()),
    }


def _depth_picture(depth: Tensor, ends: tuple[float, float]) -> str:
    """A depth map in colours: bright is near, grey unknown."""
    from matplotlib import colormaps

    low, high = ends
    share = ((depth - low) / max(high - low, 1e-12)).clamp(0, 1)
    pixels = colormaps["magma_r"](share.nan_to_num(0).cpu().numpy(), bytes=True)[..., :3]
    pixels[~torch.isfinite(depth).cpu().numpy()] = UNKNOWN_DEPTH
    return _picture(pixels)


def _picture(pixels: np.ndarray) -> str:
    """[height, width, 3] uint8 as the address of a JPEG that holds its own content."""
    image = Image.fromarray(pixels)
    width = min(PICTURE_WIDTH, image.width)
    image = image.resize((width, max(1, round(image.height * width / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _uint16(shares: Tensor) -> np.ndarray:
    return (shares.clamp(0, 1) * STEPS).round().cpu().numpy().astype("<u2")


def _bytes(colors: Tensor) -> np.ndarray:
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _rounded(tensor: Tensor) -> list:
    return [float(f"{value:.6g}") for value in tensor.flatten().tolist()]
