"""CO3Dv2's annotations of sequences and frames, and PyTorch3D's cameras as OpenCV's.

Set lists name frames by sequence and frame number; both annotation files of a category are joined to them by
these, since the order of records and the numbers in file names mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .co3d_subsets import Listed
from .records import Record, read_json

INTRINSICS_FORMATS = ("ndc_norm_image_bounds", "ndc_isotropic")  # the first where a record names none
MAX_TRANSLATION = (
    1e5  # sequence units; failed reconstructions lie beyond (VGGT drops them by the same number)
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; paths are relative to the root of the data set."""

    image: str
    size: tuple[int, int]  # height, width
    extrinsics: np.ndarray  # [3, 4] float64, world to camera, OpenCV
    intrinsics: np.ndarray  # [3, 3] float64, integers at pixel centres
    depth: str | None  # 16-bit PNG of half floats
    depth_scale: float  # of the decoded values
    depth_mask: str | None  # not 0 where depth is on the object and agrees between views
    object_mask: str | None  # 8 bits, probability of the object


@dataclass(frozen=True)
class Sequence:
    """One sequence, as annotated."""

    quality: float | None  # viewpoint quality score, NaN and None included
    cloud: str | None  # path of the point cloud, relative to the root


def opencv_camera(
    rotation: np.ndarray,  # [3, 3]
    translation: np.ndarray,  # [3]
    focal_length: np.ndarray,  # [2]
    principal_point: np.ndarray,  # [2]
    intrinsics_format: str,
    size: tuple[int, int],  # height, width
) -> tuple[np.ndarray, np.ndarray]:
    """Extrinsics [3, 4] and intrinsics [3, 3], float64, of one of CO3D's viewpoints.

    Convention: CO3D's is PyTorch3D's, row vectors x_camera = x_world R + T with +x left and +y up, so both
    axes turn: R' = D Rᵀ, t' = D T with D = diag(-1, -1, 1). Focal length and principal point are in units of
    half the shorter side ("ndc_isotropic") or of half of each side ("ndc_norm_image_bounds"), the principal
    point runs left and up from the image's middle, and pixels are counted from the image's corner: ours,
    from the centre of the first pixel, are half a pixel less.

    Example:
        >>> focal, principal = np.array([3, 3.1]), np.array([0.05, -0.1])
        >>> camera = opencv_camera(np.eye(3), np.ones(3), focal, principal, "ndc_isotropic", (480, 640))
        >>> camera[0][:, 3].tolist(), camera[1][:2].round(6).tolist()
        ([-1.0, -1.0, 1.0], [[720.0, 0.0, 307.5], [0.0, 744.0, 263.5]])
    """
    flip = np.array([-1.0, -1.0, 1.0])
    extrinsics = np.concatenate([flip[:, None] * rotation.T, (flip * translation)[:, None]], axis=1)
    half_sides = np.array([size[1], size[0]]) / 2  # of width and height
    unit = np.full(2, half_sides.min()) if intrinsics_format == "ndc_isotropic" else half_sides
    intrinsics = np.eye(3)
    intrinsics[[0, 1], [0, 1]] = focal_length * unit
    intrinsics[:2, 2] = half_sides - principal_point * unit - 0.5
    return extrinsics, intrinsics


def pose_problem(extrinsics: np.ndarray, intrinsics: np.ndarray) -> str | None:
    """Why a camera [3, 4] and [3, 3] cannot be used, by the annotation's field; None if it can."""
    rotation, translation = extrinsics[:, :3], extrinsics[:, 3]
    focal_length, principal_point = np.diag(intrinsics)[:2], intrinsics[:2, 2]
    fields = {"R": rotation, "T": translation, "focal_length": focal_length}
    for name, values in (fields | {"principal_point": principal_point}).items():
        if not np.isfinite(values).all():
            return f"'viewpoint.{name}' is not finite"
    length = float(np.linalg.norm(translation))
    if length > MAX_TRANSLATION:
        return f"'viewpoint.T' has a length of {length:.1e}, more than {MAX_TRANSLATION:.0e}"
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        return "'viewpoint.R' is no rotation"
    if focal_length.min() <= 0:
        return "'viewpoint.focal_length' is not positive"
    return None


def read_sequences(path: Path, listed: Listed) -> dict[str, Sequence]:
    """Annotations of the listed sequences, as far as `sequence_annotations.jgz` has them.

    Raises:
        InputError: the file cannot be read, or a record is malformed.
    """
    sequences = {}
    for record in _records(read_json(path)):
        name = record.text("sequence_name")
        if name in listed:
            record = Record(record.values, f"{record.where}, sequence {name!r}")
            score = record.field("viewpoint_quality_score")
            quality = None if score is None else float(record.numbers("viewpoint_quality_score", ()))
            cloud = record.values.get("point_cloud")
            sequences[name] = Sequence(quality, record.text("point_cloud.path") if cloud else None)
    return sequences


def read_frames(path: Path, listed: Listed) -> dict[str, dict[int, Record]]:
    """Records of the listed frames by sequence and number, as far as `frame_annotations.jgz` has them.

    Raises:
        InputError: the file cannot be read, or a record has no sequence name or frame number.
    """

    def keep(values: dict) -> Any:
        """All but the records of frames that are not listed; most of a large file is not."""
        match values:
            case {"sequence_name": str(sequence), "frame_number": int(number)}:
                return values if number in listed.get(sequence, ()) else None
        return values

    frames: dict[str, dict[int, Record]] = {}
    for record in _records(read_json(path, keep)):
        name, number = record.text("sequence_name"), record.field("frame_number")
        if not isinstance(number, int):
            raise InputError(f"{record.where}: 'frame_number' must be an integer, got {number!r}.")
        where = f"{record.where}, frame {number} of {name!r}"
        frames.setdefault(name, {})[number] = Record(record.values, where)
    return frames


def parse_frame(record: Record) -> Frame | None:
    """The frame of a record; None if its camera is not known (`viewpoint` is null).

    Raises:
        InputError: a field is missing or malformed.
    """
    size = record.numbers("image.size", (2,))
    if not (size >= 1).all() or (size % 1).any():
        raise InputError(f"{record.where}: 'image.size' must be height and width, got {size.tolist()}.")
    height, width = (int(side) for side in size)
    viewpoint = record.field("viewpoint")
    if viewpoint is None:
        return None
    known = viewpoint.get("intrinsics_format") if isinstance(viewpoint, dict) else None
    intrinsics_format = known or INTRINSICS_FORMATS[0]
    if intrinsics_format not in INTRINSICS_FORMATS:
        raise InputError(
            f"{record.where}: 'viewpoint.intrinsics_format' must be one of {', '.join(INTRINSICS_FORMATS)}, "
            f"got {known!r}."
        )
    extrinsics, intrinsics = opencv_camera(
        record.numbers("viewpoint.R", (3, 3)),
        record.numbers("viewpoint.T", (3,)),
        record.numbers("viewpoint.focal_length", (2,)),
        record.numbers("viewpoint.principal_point", (2,)),
        intrinsics_format,
        (height, width),
    )
    depth = record.values.get("depth")
    scale = float(record.numbers("depth.scale_adjustment", ())) if depth else 1.0
    if not 0 < scale < np.inf:
        raise InputError(f"{record.where}: 'depth.scale_adjustment' must be a positive number, got {scale}.")
    return Frame(
        record.text("image.path"),
        (height, width),
        extrinsics,
        intrinsics,
        depth=record.text("depth.path") if depth else None,
        depth_scale=scale,
        depth_mask=record.text("depth.mask_path") if depth and depth.get("mask_path") else None,
        object_mask=record.text("mask.path") if record.values.get("mask") else None,
    )


def _records(content: Record) -> list[Record]:
    """The records of an annotation file, but those that were left out when it was read."""
    if not isinstance(content.values, list):
        raise InputError(
            f"{content.where} must be a list of records, as CO3Dv2 has it; other data sets use the same name."
        )
    return [Record(values, content.where) for values in content.values if values is not None]
