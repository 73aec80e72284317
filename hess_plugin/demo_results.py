"""What the demo shows: tables, point clouds, cameras and the contact sheet, all from plain tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .datasets.scene import Scene
from .evaluation.compare import Reference, align
from .evaluation.predict import Prediction
from .files import MANIFEST, written_files
from .plots import (
    PointCloud,
    SheetBlock,
    SheetColumn,
    clean_mask,
    colored_cloud,
    contact_sheet,
    frustums,
    overview,
)
from .plots.contact_sheet import CLOUD_ASPECT
from .plots.figure import save
from .plots.point_cloud import move_cameras, write_cloud, write_frustums
from .scores import HeadScores
from .tables import format_table

NAMES = {"dense": "Dense", "uniform": "Uniform", "hess": "HeSS"}
FRUSTUM_LENGTH = 0.08  # in the reference's unit
DISTANCE_NOTE = (
    "ATE and point error are after alignment; 1 is the mean distance of the points from the first camera."
)
MAX_DENSITY_GAP = 0.005  # uniform and HeSS are comparable below this
# Table columns: key of the metrics (see `compare`), heading, number format.
GROUND_TRUTH_COLUMNS = (
    ("auc_30", "AUC@30", ".3f"),
    ("ate", "ATE", ".4f"),
    ("point_error", "point error", ".4f"),
)
DENSE_COLUMNS = (("pose_error", "pose (deg)", ".2f"), *GROUND_TRUTH_COLUMNS[1:])
RUN_COLUMNS = (("density", "density", ".4f"), ("seconds", "seconds", ".2f"))


@dataclass(frozen=True)
class SceneResult:
    """One scene: what each method made of it, and how far that is from the reference."""

    scene: Scene
    reference: Reference
    predictions: dict[str, Prediction]  # by method
    metrics: dict[str, dict[str, float]]  # by method; see `compare`

    @property
    def kind(self) -> str:
        """Scenes of one kind share a table."""
        return "synthetic" if self.scene.name.startswith("synthetic") else self.scene.name

    def row(self, method: str) -> dict[str, float]:
        """All numbers of one method."""
        prediction = self.predictions[method]
        return self.metrics[method] | {"density": prediction.density, "seconds": prediction.seconds}


def summarise(results: Sequence[SceneResult]) -> dict[str, Any]:
    """All numbers as JSON values: per kind of scene the mean of each method, and every scene's own rows."""
    groups = []
    for kind in dict.fromkeys(result.kind for result in results):
        members = [result for result in results if result.kind == kind]
        rows = {member.scene.name: {m: member.row(m) for m in member.predictions} for member in members}
        methods = members[0].predictions
        height, width = members[0].scene.images.shape[-2:]
        groups.append(
            {
                "kind": kind,
                "compared_with": "ground truth" if members[0].reference.is_ground_truth else "dense",
                "views": len(members[0].scene.images),
                "image_size": [height, width],
                "unit_lengths": {member.scene.name: member.reference.unit for member in members},
                "mean": {m: _mean([row[m] for row in rows.values()]) for m in methods},
                "scenes": rows,
            }
        )
    return {"program": "hess demo", "groups": groups, "notes": density_notes(groups)}


def density_notes(groups: Sequence[dict[str, Any]]) -> list[str]:
    """A line per kind of scene whose sparse methods did not attend to equally many blocks."""
    notes = []
    for group in groups:
        uniform, hess = (group["mean"][method]["density"] for method in ("uniform", "hess"))
        if abs(uniform - hess) > MAX_DENSITY_GAP:
            notes.append(
                f"{group['kind']}: measured densities differ by more than {MAX_DENSITY_GAP:.1%} "
                f"(uniform {uniform:.4f}, HeSS {hess:.4f}); compare with care."
            )
    return notes


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in rows[0]}


def format_summary(summary: dict[str, Any]) -> str:
    """The tables that the command line prints: one per kind of scene, the mean over its scenes."""
    blocks = []
    for group in summary["groups"]:
        truth = group["compared_with"] == "ground truth"
        columns = (*(GROUND_TRUTH_COLUMNS if truth else DENSE_COLUMNS), *RUN_COLUMNS)
        height, width = group["image_size"]
        count = len(group["scenes"])
        mean = f"mean of {count} scenes, " if count > 1 else ""
        rows = [
            [NAMES[m], *(format(row[key], form) for key, _, form in columns)]
            for m, row in group["mean"].items()
        ]
        table = format_table(["", *(heading for _, heading, _ in columns)], rows)
        views = f"{mean}{group['views']} views of {width} x {height} pixels"
        blocks.append(f"{group['kind']}: {views}, against {group['compared_with']}\n{table}")
    notes = [DISTANCE_NOTE, *summary["notes"]]
    return "\n\n".join([*blocks, *(f"Note: {note}" for note in notes)])


@dataclass(frozen=True)
class _Placed:
    """A reconstruction in the frame and unit of its scene's reference."""

    cloud: PointCloud
    extrinsics: Tensor  # [V, 3, 4]
    intrinsics: Tensor  # [V, 3, 3]
    pyramids: Tensor  # [V, 5, 3]
    depth: Tensor  # [V, height, width], NaN where unknown


def _place(result: SceneResult, method: str) -> _Placed:
    """A method's reconstruction, or with method "ground_truth" the reference itself, ready to be shown."""
    images, reference = result.scene.images, result.reference
    if method == "ground_truth":
        depth, extrinsics, intrinsics = reference.depth, reference.extrinsics, reference.intrinsics
        depth = torch.where(reference.mask, depth, torch.nan)
        cloud = colored_cloud(images, reference.points, reference.mask)
    else:
        prediction = result.predictions[method]
        similarity = align(prediction, reference)
        keep = clean_mask(prediction.depth, prediction.confidence)
        cloud = colored_cloud(images, similarity.apply(prediction.points), keep)
        extrinsics, intrinsics = move_cameras(prediction.extrinsics, similarity), prediction.intrinsics
        depth = prediction.depth * similarity.scale.float()
    size = (images.shape[-2], images.shape[-1])
    pyramids = frustums(extrinsics, intrinsics, size, FRUSTUM_LENGTH * reference.unit)
    return _Placed(cloud, extrinsics, intrinsics, pyramids, depth)


def _shown(result: SceneResult) -> list[str]:
    """Methods to show, after ground truth where there is any."""
    return [*(["ground_truth"] if result.reference.is_ground_truth else []), *result.predictions]


def write_scene(folder: Path, result: SceneResult) -> None:
    """Write points_METHOD.ply, cameras_METHOD.ply (pyramids) and cameras_METHOD.json for every method.

    All of them lie in one frame, that of ground truth or of the dense reconstruction: opened together in a 3D
    viewer, they can be compared.
    """
    folder.mkdir(parents=True)
    for method in _shown(result):
        placed = _place(result, method)
        write_cloud(folder / f"points_{method}.ply", placed.cloud)
        write_frustums(folder / f"cameras_{method}.ply", placed.pyramids)
        write_cameras(folder / f"cameras_{method}.json", placed, result.scene)


def write_cameras(path: Path, placed: _Placed, scene: Scene) -> None:
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


def write_sheet(
    path: Path, results: Sequence[SceneResult], scores: HeadScores, density: float, notes: Sequence[str]
) -> None:
    """Draw the first scene of each kind, the scores, and what a reader must know, as one PNG."""
    firsts = {result.kind: result for result in reversed(results)}
    blocks = [_block(result) for result in reversed(firsts.values())]
    info = scores.info
    title = f"Dense, uniform and HeSS attention at density {density:g}"
    subtitle = (
        f"Scores of {info.num_layers} x {info.num_heads} heads, calibrated on {len(info.scene_ids)} scenes "
        f"of {info.dataset}. Density is the measured share of attended blocks in global attention."
    )
    caption = (
        "Point clouds after alignment to the reference, seen from behind and above the first camera; cameras "
        "in red. The least confident 20 % of the points and those at depth edges are left out.\n"
        "Depth maps: bright is near, one range of colours per scene, grey is unknown."
    )
    caption = "\n".join([caption, *notes])
    shares = {"camera": scores.weights(camera_weight=1.0), "points": scores.weights(camera_weight=0.0)}
    save(contact_sheet(title, subtitle, caption, blocks, shares), path)


def _block(result: SceneResult) -> SheetBlock:
    """One scene of the sheet."""
    reference, columns = result.reference, []
    for method in _shown(result):
        placed = _place(result, method)
        title, subtitle = "Ground truth", ""
        if method in result.predictions:
            row = result.row(method)
            title = NAMES[method] if method == "dense" else f"{NAMES[method]}, density {row['density']:.2f}"
            named = GROUND_TRUTH_COLUMNS[::2] if reference.is_ground_truth else DENSE_COLUMNS[::2]
            subtitle = " · ".join(f"{heading} {format(row[key], f)}" for key, heading, f in named)
        columns.append(SheetColumn(title, subtitle, placed.depth, placed.cloud, placed.pyramids))
    viewpoint = overview(reference.points[reference.mask], reference.extrinsics, aspect=CLOUD_ASPECT)
    return SheetBlock(f"Scene {result.scene.name}", result.scene.images, viewpoint, columns)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write results.json; numbers that do not exist (NaN) become null."""
    files = written_files(folder)
    (folder / MANIFEST).write_text(json.dumps(_finite(summary | {"files": files}), indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
