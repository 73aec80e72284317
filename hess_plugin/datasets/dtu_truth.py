"""Ground truth of the DTU 2014 evaluation: a scan's reference cloud, observation mask and ground plane.

Files below a root: `Points/stl/stl001_total.ply`, `ObsMask/ObsMask1_10.mat`, `ObsMask/Plane1.mat`.

Convention: world unit millimetre, the world of the DTU cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, input_errors
from .ply import read_ply_points


@dataclass(frozen=True)
class ObservationMask:
    """Cells of space that the scanner saw, of DTU's `ObsMask<scan>_10.mat`."""

    cells: np.ndarray  # [X, Y, Z] bool
    box: np.ndarray  # [2, 3] float64, mm: least and greatest corner, rounded to float32 as the protocol does
    resolution: float  # mm, edge of a cell

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Whether each of the points [N, 3] (mm) lies in a cell that is set, [N] bool.

        Cell `round((x - box[0]) / resolution)`, halves to even, so that cell 0 is centred on the corner.

        Example:
            >>> cells = np.array([True, False, True]).reshape(3, 1, 1)
            >>> mask = ObservationMask(cells, np.array([[0.0, 0, 0], [20, 0, 0]]), resolution=10.0)
            >>> mask.contains(np.array([[4.0, 0, 0], [-4, 4, 4], [6, 0, 0], [16, 0, 0], [26, 0, 0]]))
            array([ True,  True, False,  True, False])
        """
        index = np.rint((points - self.box[0]) / self.resolution)
        inside = ((index >= 0) & (index < self.cells.shape)).all(1)
        found = np.zeros(len(points), bool)
        found[inside] = self.cells[tuple(index[inside].astype(np.int64).T)]
        return found


@dataclass(frozen=True)
class DtuGroundTruth:
    """What a reconstruction of one scan is compared with."""

    points: np.ndarray  # [N, 3] float64, mm: the reference cloud ("stl")
    observed: ObservationMask
    plane: np.ndarray  # [4] float64: points with P · (x, y, z, 1) > 0 lie above the ground

    def above_plane(self, points: np.ndarray) -> np.ndarray:
        """Whether each of the points [N, 3] (mm) lies above the ground plane, not in it, [N] bool."""
        return points @ self.plane[:3] + self.plane[3] > 0


def read_ground_truth(root: Path, scan: int) -> DtuGroundTruth:
    """Ground truth of a scan (1 to 128) below the root of the official evaluation set.

    Raises:
        InputError: naming the file that is missing, or its field that does not fit.
        ImportError: naming the extra to install, when SciPy is missing.
    """
    return DtuGroundTruth(
        read_ply_points(cloud_path(root, scan)),
        read_observation_mask(root / "ObsMask" / f"ObsMask{scan}_10.mat"),
        read_plane(root / "ObsMask" / f"Plane{scan}.mat"),
    )


def cloud_path(root: Path, scan: int) -> Path:
    """Where a scan's reference cloud lies; of the three files only this one has a number of three digits."""
    return root / "Points" / "stl" / f"stl{scan:03d}_total.ply"


def read_observation_mask(path: Path) -> ObservationMask:
    """Observation mask of a scan: `ObsMask` [X, Y, Z], `BB` [2, 3] and `Res` (both mm) of a MATLAB file.

    Raises:
        InputError: naming the file and the variable that is missing or does not fit.
        ImportError: naming the extra to install, when SciPy is missing.
    """
    variables = _read_mat(path)
    cells = _variable(variables, "ObsMask", (None, None, None), path)
    box = _variable(variables, "BB", (2, 3), path).astype(np.float32).astype(np.float64)
    resolution = float(_variable(variables, "Res", (1, 1), path)[0, 0])
    if not resolution > 0 or not (box[0] < box[1]).all():
        raise InputError(f"{str(path)!r}: 'Res' must be positive and the second row of 'BB' the greater one.")
    return ObservationMask(cells != 0, box, resolution)


def read_plane(path: Path) -> np.ndarray:
    """Ground plane `P` [4] float64 of DTU's `Plane<scan>.mat`; see `DtuGroundTruth`.

    Raises:
        InputError: naming the file and the variable that is missing or does not fit.
        ImportError: naming the extra to install, when SciPy is missing.
    """
    plane = _variable(_read_mat(path), "P", (4, 1), path)[:, 0]
    if not plane[:3].any():
        raise InputError(f"{str(path)!r}: the first three numbers of 'P' are 0; a plane has a normal.")
    return plane


def _read_mat(path: Path) -> dict[str, Any]:
    try:
        import scipy.io
    except ImportError as error:
        raise ImportError('MATLAB files need SciPy; pip install "hess-plugin[calibration]".') from error
    # SciPy's reader checks little: damage ends in errors of any kind, down to IndexError and zlib.error.
    with input_errors(Exception, prefix=f"cannot read {str(path)!r} as a MATLAB file: "):
        return scipy.io.loadmat(path)


def _variable(variables: dict[str, Any], name: str, shape: tuple[int | None, ...], path: Path) -> np.ndarray:
    """A variable of finite numbers with this shape (None: any length but 0); its dtype as stored."""
    if name not in variables:
        there = ", ".join(sorted(each for each in variables if not each.startswith("__"))) or "nothing"
        raise InputError(f"{str(path)!r} has no variable {name!r}; it holds {there}.")
    value = np.asarray(variables[name])
    fits = len(value.shape) == len(shape) and all(
        found > 0 and wanted in (None, found) for found, wanted in zip(value.shape, shape, strict=True)
    )
    if not fits or value.dtype.kind not in "buif" or not np.isfinite(value).all():
        rule = " x ".join("n" if length is None else str(length) for length in shape)
        raise InputError(
            f"{str(path)!r}: {name!r} must be {rule} finite numbers, got {value.dtype} of {value.shape}."
        )
    return value
