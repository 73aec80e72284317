"""What the demo shows: tables, point clouds, cameras and the contact sheet, all from plain tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import MANIFEST, finite, written_files
from .plots import SheetBlock, SheetColumn, contact_sheet, overview
from .plots.contact_sheet import CLOUD_ASPECT
from .plots.figure import save
from .scores import HeadScores
from .tables import count_of, format_table
from .viewer.page import Page
from .viewer.results import (
    DENSE_COLUMNS,
    DISTANCE_NOTE,
    GROUND_TRUTH_COLUMNS,
    NAMES,
    RUN_COLUMNS,
    SceneResult,
)

PAGE_FILE = "index.html"
MAX_DENSITY_GAP = 0.005  # uniform and HeSS are comparable below this


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
        views = f"{mean}{count_of(group['views'], 'view')} of {width} x {height} pixels"
        blocks.append(f"{group['kind']}: {views}, against {group['compared_with']}\n{table}")
    notes = [DISTANCE_NOTE, *summary["notes"]]
    return "\n\n".join([*blocks, *(f"Note: {note}" for note in notes)])


def write_sheet(
    path: Path, results: Sequence[SceneResult], scores: HeadScores, density: float, notes: Sequence[str]
) -> None:
    """Draw the first scene of each kind, the scores, and what a reader must know, as one PNG."""
    firsts = {result.kind: result for result in reversed(results)}
    blocks = [_block(result) for result in reversed(firsts.values())]
    title, subtitle = _headings(scores, density)
    caption = (
        "Point clouds after alignment to the reference, seen from behind and above the first camera; cameras "
        "in red. Left out are the least confident 20 % of the points,\n"
        "those at depth edges, those that more photos contradict than confirm, and backs of surfaces.\n"
        "Depth maps: bright is near, one range of colours per scene, grey is unknown."
    )
    caption = "\n".join([caption, *notes])
    save(contact_sheet(title, subtitle, caption, blocks, scores.shares()), path)


def demo_page(scores: HeadScores, density: float, summary: dict[str, Any]) -> Page:
    """What stands on the demo's page beside its scenes."""
    told = {"Settings": summary["settings"], "Versions": summary["versions"]}
    return Page(*_headings(scores, density), summary["notes"], scores.shares(), told)


def _headings(scores: HeadScores, density: float) -> tuple[str, str]:
    """Title and the line below it."""
    info = scores.info
    return f"Dense, uniform and HeSS attention at density {density:g}", (
        f"Scores of {info.num_layers} x {info.num_heads} heads, calibrated on "
        f"{count_of(len(info.scene_ids), 'scene')} of {info.dataset}. Density is the measured share of "
        "attended blocks in global attention."
    )


def _block(result: SceneResult) -> SheetBlock:
    """One scene of the sheet."""
    reference, columns = result.reference, []
    for method, placed in result.placed.items():
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
    (folder / MANIFEST).write_text(json.dumps(finite(summary | {"files": files}), indent=1) + "\n")
