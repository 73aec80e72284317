"""Write a miniature CO3Dv2 tree in the real on-disk format, from the bundled photos of an office.

    python tests/co3d_tree.py OUT [--rendered]

writes two categories with two sequences of nine frames each; with `--rendered` of scenes like those that the
small model was trained on, which it can be calibrated on. `write_traps`
writes what is hard to read about the real files, on purpose: file numbers that are no frame numbers, shuffled
records, portrait photos, principal points off the middle, infinite depth, frames without depth, low, null and
NaN quality, no point cloud, a broken pose, black frames, legacy intrinsics with and without the key, a scale
of the depth other than 1, and fields that nobody knows. It cannot show the real data's noise, cover and size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from office_photos import OfficeView, office_views, turn_clockwise, write_ply
from PIL import Image

from hess_plugin.datasets import Scene, synthetic_scene

LEGACY, ISOTROPIC = "ndc_norm_image_bounds", "ndc_isotropic"
KINDS = (("images", ".jpg"), ("depths", ".jpg.geometric.png"), ("depth_masks", ".png"), ("masks", ".png"))


@dataclass(frozen=True)
class Co3dSequence:
    """One sequence to write."""

    category: str
    name: str
    views: list[OfficeView]
    quality: float | None = 0.9
    intrinsics_format: str | None = ISOTROPIC
    depth_scale: float = 1.0
    redacted: tuple[int, ...] = ()  # positions of frames blacked out, as the challenge's hidden frames are
    broken: bool = False  # the second frame's translation is absurd

    @property
    def scene_id(self) -> str:
        return f"{self.category}/{self.name}"


Truth = dict[str, dict[int, OfficeView]]  # scene id -> frame number -> the view as it is


def write_plain(root: Path, frames: int = 9, stride: int = 5) -> Truth:
    """Two sequences in each of two categories, all good, as the many-view dev subsets have them."""
    ranks = (0, 6, 9, 11)  # four different groups of views
    return _write_dev(root, [office_views(frames, stride, rank) for rank in ranks])


def write_rendered(root: Path, frames: int = 9) -> Truth:
    """The same tree with photos of 112 x 112 pixels of four procedural scenes."""
    scenes = [synthetic_scene(seed, frames, image_size=112) for seed in range(4)]
    return _write_dev(root, [_views_of(scene) for scene in scenes])


def _views_of(scene: Scene) -> list[OfficeView]:
    known = (scene.images, scene.depth, scene.intrinsics, scene.extrinsics)
    return [
        OfficeView(
            np.rint(255 * image.permute(1, 2, 0).numpy()).astype(np.uint8),
            depth.double().numpy(),
            intrinsics.double().numpy(),
            np.vstack([extrinsics.double().numpy(), [0, 0, 0, 1]]),
        )
        for image, depth, intrinsics, extrinsics in zip(*known, strict=True)
    ]


def _write_dev(root: Path, groups: list[list[OfficeView]]) -> Truth:
    """Four groups of views as the sequences of two categories in the many-view dev subsets."""
    categories = ("apple", "apple", "bench", "bench")
    sequences = [
        Co3dSequence(category, f"{100 + index}_00001_00001", views)
        for index, (category, views) in enumerate(zip(categories, groups, strict=True))
    ]
    lists = {
        first.category: {
            "manyview_dev_0": (first.name, "held out"),
            "manyview_dev_1": (second.name, "held out"),
        }
        for first, second in (sequences[:2], sequences[2:])
    }
    return _write(root, sequences, lists)


def write_traps(root: Path) -> Truth:
    """Ten sequences with all that makes CO3D hard to read; see the top of this file."""

    def views(rank: int, count: int) -> list[OfficeView]:
        return office_views(count, 9, rank)

    portrait = [turn_clockwise(view) for view in office_views(6, 9, 1)]
    sequences = [
        Co3dSequence("apple", "first", views(0, 6), 0.95),
        Co3dSequence("apple", "portrait", portrait),
        Co3dSequence("apple", "low", views(2, 2), 0.4),
        Co3dSequence("apple", "null", views(0, 2), None),
        Co3dSequence("apple", "nan", views(1, 2), math.nan),
        Co3dSequence("apple", "broken", views(2, 2), broken=True),
        Co3dSequence("apple", "redacted", views(0, 4), redacted=(1, 3)),
        Co3dSequence("chair", "legacy", views(0, 3), intrinsics_format=LEGACY),
        Co3dSequence("chair", "keyless", portrait[:3], intrinsics_format=None),  # missing means legacy
        Co3dSequence("chair", "scaled", views(2, 3), depth_scale=2.0),
    ]
    lists = {
        "apple": {
            "fewview_train": (
                "first",
                "overlap",
            ),  # its train and test lists share frames, as in the real files
            "fewview_dev": ("first", "portrait low null nan broken"),
            "manyview_dev_0": ("first", "held out"),
            "manyview_dev_1": ("portrait", "held out"),
            "manyview_test_0": ("redacted", "held out"),
        },
        "chair": {"fewview_dev": ("legacy keyless", "scaled")},
    }
    return _write(root, sequences, lists)


def opencv_to_pytorch3d(view: OfficeView, intrinsics_format: str | None) -> dict:
    """The `viewpoint` of a camera: row vectors, +x left and +y up, pixels counted from the image's corner."""
    h, w = view.depth.shape
    size = np.array([w, h])
    rotation, translation = view.world_to_camera[:3, :3].T.copy(), view.world_to_camera[:3, 3].copy()
    rotation[:, :2] *= -1
    translation[:2] *= -1
    half = np.full(2, min(h, w) / 2) if intrinsics_format == ISOTROPIC else size / 2
    return {
        "R": rotation.tolist(),
        "T": translation.tolist(),
        "focal_length": (view.K[[0, 1], [0, 1]] / half).tolist(),
        "principal_point": (-(view.K[:2, 2] + 0.5 - size / 2) / half).tolist(),
        **({} if intrinsics_format is None else {"intrinsics_format": intrinsics_format}),
    }


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Let a function change the content of a JSON file, gzipped or not, in place."""
    packed = path.suffix == ".jgz"
    content = json.loads(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    change(content)
    write_json(path, content)


def write_json(path: Path, content: object) -> None:
    """JSON, gzipped without a time stamp for `.jgz`; NaN is written as NaN, as in the real files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".jgz" else data)


def _write(root: Path, sequences: list[Co3dSequence], lists: dict[str, dict[str, tuple[str, str]]]) -> Truth:
    truth: Truth = {}
    for category, subsets in lists.items():
        own = [each for each in sequences if each.category == category]
        records = {each.name: _write_frames(root, each) for each in own}
        truth |= {each.scene_id: {2 * k: view for k, view in enumerate(each.views)} for each in own}
        frames = [record for name in records for record in records[name]]
        random.Random(0).shuffle(frames)  # the order in the file means nothing
        write_json(root / category / "frame_annotations.jgz", frames)
        sequence_records = [_sequence_annotation(root, each) for each in own]
        write_json(root / category / "sequence_annotations.jgz", sequence_records)
        entries = {
            name: [[name, each["frame_number"], each["image"]["path"]] for each in of_sequence]
            for name, of_sequence in records.items()
        }
        for name, (train, test) in subsets.items():
            content = _set_list(entries, train.split(), test)
            write_json(root / category / "set_lists" / f"set_lists_{name}.json", content)
    write_json(root / "category_to_subset_name_list.json", {name: sorted(lists[name]) for name in lists})
    return truth


def _set_list(entries: dict[str, list], train: list[str], test: str) -> dict[str, list]:
    known = [entry for name in train for entry in entries[name]]
    if test == "overlap":
        return {"train": known, "val": [], "test": known}
    if test == "held out":
        hidden = known[1::2] if train == ["redacted"] else known[2::3]
        return {"train": [entry for entry in known if entry not in hidden], "val": hidden, "test": hidden}
    return {"train": known, "val": [], "test": [entry for name in test.split() for entry in entries[name]]}


def _write_frames(root: Path, sequence: Co3dSequence) -> list[dict]:
    """Write the files of a sequence and return its records. Unknown depth is infinite in the first frame, and
    the last frame of four or more has none at all."""
    center, radius = _ball(sequence.views)
    records = []
    for k, view in enumerate(sequence.views):
        mask = _foreground(view, center, radius)
        depth = np.where(view.depth > 0, view.depth, np.inf if k == 0 else 0.0)
        if k in sequence.redacted:
            view = replace(view, rgb=np.zeros_like(view.rgb))
            mask, depth = np.zeros_like(mask), np.zeros_like(depth)
        stem = f"frame{3 * k + 1:06d}"  # the number in the file's name is not the frame's
        paths = {kind: f"{sequence.scene_id}/{kind}/{stem}{suffix}" for kind, suffix in KINDS}
        for path in paths.values():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(view.rgb)).save(root / paths["images"], quality=92)
        Image.fromarray(np.rint(255 * mask).astype(np.uint8)).save(root / paths["masks"])
        has_depth = k < len(sequence.views) - 1 or k < 3
        if has_depth:
            bits = (depth / sequence.depth_scale).astype(np.float16).view(np.uint16)
            Image.fromarray(bits).save(root / paths["depths"])
            Image.fromarray((mask > 0.5) & (view.depth > 0)).save(
                root / paths["depth_masks"]
            )  # 1 bit a pixel
        viewpoint = opencv_to_pytorch3d(view, sequence.intrinsics_format)
        if sequence.broken and k == 1:
            viewpoint["T"] = [2e5, 0.0, 0.0]
        about_depth = {"path": paths["depths"], "mask_path": paths["depth_masks"]}
        records.append(
            {
                "sequence_name": sequence.name,
                "frame_number": 2 * k,
                "frame_timestamp": round(k / 10, 3),
                "image": {"path": paths["images"], "size": list(depth.shape)},
                "depth": about_depth | {"scale_adjustment": sequence.depth_scale} if has_depth else None,
                "mask": {"path": paths["masks"], "mass": float(mask.sum()), "bounding_box_xywh": None},
                "viewpoint": viewpoint,
                "meta": {"fixture": True} if k == 0 else None,
            }
        )
    return records


def _sequence_annotation(root: Path, sequence: Co3dSequence) -> dict:
    """Sequences without a quality have no point cloud either, as in the real files."""
    cloud = None
    if sequence.quality is not None and not math.isnan(sequence.quality):
        center, radius = _ball(sequence.views)
        xyz, rgb = (
            np.concatenate(parts) for parts in zip(*(v.unproject() for v in sequence.views), strict=True)
        )
        keep = np.flatnonzero(np.linalg.norm(xyz - center, axis=1) < radius)[::7]
        cloud = {"path": f"{sequence.scene_id}/pointcloud.ply", "quality_score": 1.0, "n_points": len(keep)}
        write_ply(root / cloud["path"], xyz[keep], rgb[keep])
    return {
        "sequence_name": sequence.name,
        "category": sequence.category,
        "video": None,
        "point_cloud": cloud,
        "viewpoint_quality_score": sequence.quality,
    }


def _ball(views: list[OfficeView]) -> tuple[np.ndarray, float]:
    """Centre and radius of a ball that holds about 40 % of the points: it stands in for the object."""
    xyz = np.concatenate([view.unproject()[0] for view in views])
    center = np.median(xyz, axis=0)
    return center, float(np.percentile(np.linalg.norm(xyz - center, axis=1), 40))


def _foreground(view: OfficeView, center: np.ndarray, radius: float) -> np.ndarray:
    """Soft probability [h, w] that a pixel shows the object; 0 where depth is unknown."""
    probability = np.zeros(view.depth.shape)
    distance = np.linalg.norm(view.unproject()[0] - center, axis=1)
    probability[view.depth > 0] = np.clip((radius - distance) / (0.2 * radius) + 0.5, 0, 1)
    return probability


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a miniature CO3Dv2 tree.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rendered", action="store_true", help="procedural scenes instead of the office")
    options = parser.parse_args()
    (write_rendered if options.rendered else write_plain)(options.out)
