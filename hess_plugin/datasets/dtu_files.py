"""MVSNet's files, in which DTU is handed on: cameras, lists of views, depth maps and masks.

Convention: world unit millimetre; OpenCV cameras, world to camera; K for integer coordinates at pixel centres
of one image size, which its file does not name.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..errors import InputError, input_errors

_CAMERA_WORDS = 27  # "extrinsic", 16 numbers, "intrinsic", 9 numbers; then the depth line
_PFM_HEADER = re.compile(rb"(P[fF])\s+(\d+)\s+(\d+)\s+(\S+)[ \t\r]*\n")
_ROUNDING = 1e-3  # files hold six digits; a rotation farther from RᵀR = 1 is damaged


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Extrinsics [3, 4] (world to camera, mm) and intrinsics K [3, 3], float64, of MVSNet's `%08d_cam.txt`.

    The file is the word `extrinsic`, a 4x4 matrix, the word `intrinsic`, a 3x3 matrix, and a line with two to
    four numbers: nearest depth, interval, number of depths, farthest depth. These belong to plane-sweep
    methods: they are checked, not used.

    Raises:
        InputError: naming the file and the field that is missing, or is no rotation or no camera matrix.
    """
    words = _read_words(path)
    values = {}
    for name, start, rows in (("extrinsic", 0, 4), ("intrinsic", 17, 3)):
        if words[start : start + 1] != [name]:
            found = " ".join(words[start : start + 1]) or "the end of the file"
            raise InputError(f"{str(path)!r}: word {start + 1} must be '{name}', got {found!r}.")
        numbers = _numbers(words[start + 1 : start + 1 + rows * rows], name, path)
        if len(numbers) < rows * rows:
            raise InputError(f"{str(path)!r}: '{name}' has {len(numbers)} numbers instead of {rows * rows}.")
        values[name] = np.array(numbers).reshape(rows, rows)
    depth_line = _numbers(words[_CAMERA_WORDS:], "the depth line", path)
    if not 2 <= len(depth_line) <= 4:
        raise InputError(f"{str(path)!r}: the depth line must hold 2 to 4 numbers, got {len(depth_line)}.")
    extrinsic, intrinsic = values["extrinsic"], values["intrinsic"]
    rotation = extrinsic[:3, :3]
    skewed = np.abs(rotation.T @ rotation - np.eye(3)).max() > _ROUNDING or np.linalg.det(rotation) < 0
    if skewed or not np.array_equal(extrinsic[3], [0, 0, 0, 1]):
        raise InputError(f"{str(path)!r}: 'extrinsic' is no rotation and translation with last row 0 0 0 1.")
    shape = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]]) > 0
    if not (np.diag(intrinsic) > 0).all() or intrinsic[~shape].any() or intrinsic[2, 2] != 1:
        raise InputError(f"{str(path)!r}: 'intrinsic' must be fx 0 cx, 0 fy cy, 0 0 1 with fx, fy above 0.")
    return extrinsic[:3], intrinsic


def read_view_list(path: Path) -> list[int]:
    """Ids of the views in MVSNet's `pair.txt`, in the file's order; they count from 0.

    The file is the number of views, and for each its id, the number of its neighbours, and for each of these
    an id and a score.

    Raises:
        InputError: naming the file, when it is cut off, lists a view twice, or an id is no whole number.
    """
    words = _read_words(path)
    with input_errors(ValueError, IndexError, prefix=f"{str(path)!r} is no list of views: "):
        ids, place = [], 1
        for _ in range(int(words[0])):
            ids.append(int(words[place]))
            place += 2 + 2 * int(words[place + 1])
    if place != len(words) or len(set(ids)) != len(ids) or not ids:
        raise InputError(
            f"{str(path)!r}: {words[0]} views take {place} words, all ids different; "
            f"got {len(words)} words and {len(set(ids))} ids."
        )
    return ids


def read_pfm(path: Path) -> np.ndarray:
    """Values [height, width] float64 of a PFM map with one channel, top row first as in images.

    A negative scale in the header means little endian; its size is not applied, as in MVSNet's readers.

    Raises:
        InputError: naming the file, when it is a colour map, or its header or length does not fit.
    """
    with input_errors(OSError, prefix=f"cannot read depth map {str(path)!r}: "):
        content = path.read_bytes()
    header = _PFM_HEADER.match(content)
    if header is None:
        raise InputError(f"depth map {str(path)!r} has no PFM header ('Pf', width, height, scale).")
    kind, width, height = header[1], int(header[2]), int(header[3])
    if kind == b"PF":
        raise InputError(f"depth map {str(path)!r} has three channels ('PF'); depth has one ('Pf').")
    with input_errors(ValueError, prefix=f"depth map {str(path)!r}: scale: "):
        scale = float(header[4])
    expected, found = width * height * 4, len(content) - header.end()
    if found != expected or not expected or not scale or not math.isfinite(scale):
        raise InputError(
            f"depth map {str(path)!r}: {width} x {height} values take {expected} bytes, got {found}, "
            f"at a scale of {scale:g}; the file is damaged."
        )
    values = np.frombuffer(content, "<f4" if scale < 0 else ">f4", width * height, header.end())
    return values.reshape(height, width)[::-1].astype(np.float64)  # stored with the bottom row first


def read_npy_depth(path: Path) -> np.ndarray:
    """Values [height, width] float64 of a NumPy file with one array; they need not be finite.

    Raises:
        InputError: naming the file, when it cannot be read or holds something else.
    """
    with input_errors(OSError, ValueError, EOFError, prefix=f"cannot read depth map {str(path)!r}: "):
        values = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
        found = f"{values.dtype} of {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError(f"depth map {str(path)!r} must hold numbers, height x width, got {found}.")
    return values.astype(np.float64)


def _read_words(path: Path) -> list[str]:
    with input_errors(OSError, UnicodeDecodeError, prefix=f"cannot read {str(path)!r}: "):
        return path.read_text(encoding="utf-8").split()


def _numbers(words: list[str], name: str, path: Path) -> list[float]:
    numbers = []
    for word in words:
        with input_errors(ValueError, prefix=f"{str(path)!r}: {name}: "):
            numbers.append(float(word))
        if not math.isfinite(numbers[-1]):
            raise InputError(f"{str(path)!r}: {name} must hold finite numbers, got {word!r}.")
    return numbers
