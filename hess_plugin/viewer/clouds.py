"""Point clouds and cameras as files that 3D programs open."""

from __future__ import annotations

import json
from pathlib import Path

from ..datasets.scene import Scene
from ..plots.point_cloud import write_cloud, write_frustums, write_glb
from .results import Placed, SceneResult


def write_scene(folder: Path, result: SceneResult) -> None:
    """Write the files of every method; those of these names are replaced.

    points_METHOD.ply, cameras_METHOD.ply (pyramids), both in one as scene_METHOD.glb, and
    cameras_METHOD.json. All of them lie in one frame, that of ground truth or of the dense reconstruction:
    opened together in a 3D viewer, they can be compared.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for method, placed in result.placed.items():
        write_cloud(folder / f"points_{method}.ply", placed.cloud)
        write_frustums(folder / f"cameras_{method}.ply", placed.pyramids)
        write_glb(folder / f"scene_{method}.glb", placed.cloud, placed.pyramids)
        write_cameras(folder / f"cameras_{method}.json", placed, result.scene)


def write_cameras(path: Path, placed: Placed, scene: Scene) -> None:
    """Write the cameras as JSON: `world_to_camera` [3, 4] and `K` [3, 3] of every view."""
    height, width = scene.images.shape[-2:]
    pairs = zip(placed.extrinsics.tolist(), placed.intrinsics.tolist(), strict=True)
    cameras = {
        "convention": "opencv: x_camera = world_to_camera [x_world, 1]; K for pixel centres at integers, "
        "of a prediction fitted to its points with the principal point in the middle",
        "width": width,
        "height": height,
        "views": [{"world_to_camera": extrinsics, "K": intrinsics} for extrinsics, intrinsics in pairs],
    }
    path.write_text(json.dumps(cameras, indent=1) + "\n")
