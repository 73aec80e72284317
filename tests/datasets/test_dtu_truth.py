"""Ground truth of the official DTU evaluation: cells and plane in closed form, damage by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from dtu_tree import surface_points, views_in_mm, write_official

from hess_plugin.datasets.dtu_truth import (
    DtuGroundTruth,
    ObservationMask,
    cloud_path,
    read_ground_truth,
    read_observation_mask,
    read_plane,
)
from hess_plugin.errors import InputError

CELLS = np.zeros((3, 2, 4), np.uint8)
CELLS[0, 0, 0] = CELLS[2, 1, 3] = CELLS[1, 0, 2] = 1
MASK = {"ObsMask": CELLS, "BB": [[-10.0, 20, 30], [10, 30, 60]], "Res": [[10.0]], "Margin": [[10.0]]}


class TestObservationMask:
    @pytest.mark.parametrize("dtype", [np.uint8, bool, float])
    def test_hand_worked(self, tmp_path: Path, dtype: type) -> None:
        """Cell (i, j, k) is centred on (-10, 20, 30) + 10 (i, j, k)."""
        scipy.io.savemat(tmp_path / "mask.mat", MASK | {"ObsMask": CELLS.astype(dtype)})
        mask = read_observation_mask(tmp_path / "mask.mat")
        cases = {
            (-10, 20, 30): True,  # the corner of the box: cell (0, 0, 0)
            (-14.9, 15.1, 34.9): True,  # the same cell
            (-15.1, 20, 30): False,  # below the grid
            (-4.9, 20, 30): False,  # cell (1, 0, 0), not set
            (0, 20, 50): True,  # cell (1, 0, 2)
            (20, 0, 50): False,  # not (0, 1, 2) nor any other order of axes
            (14.9, 34.9, 64.9): True,  # cell (2, 1, 3), beyond the box's greatest corner
            (15.1, 30, 60): False,  # beyond the grid
            (10, 30, -10): False,
        }
        assert mask.contains(np.array(list(cases), float)).tolist() == list(cases.values())
        assert mask.contains(np.zeros((0, 3))).shape == (0,)

    def test_halves_go_to_the_even_cell(self) -> None:
        """As NumPy rounds in the published evaluation; MATLAB's rounds them away from zero."""
        box = np.array([[0.0, 0, 0], [9, 9, 9]])
        mask = ObservationMask(np.array([True, False, True, False]).reshape(4, 1, 1), box, 10.0)
        points = np.array([[-5.0, 0, 0], [5, 0, 0], [15, 0, 0], [25, 0, 0], [35, 0, 0]])
        assert mask.contains(points).tolist() == [True, True, True, True, False]

    def test_box_is_rounded_to_float32(self, tmp_path: Path) -> None:
        """0.1 becomes 0.100000001490116, which decides about a point half a cell from it."""
        cells = np.array([1, 0], np.uint8).reshape(2, 1, 1)
        content = {"ObsMask": cells, "BB": [[0.1, 0.1, 0.1], [2, 2, 2]], "Res": [[1]]}
        scipy.io.savemat(tmp_path / "mask.mat", content)
        mask = read_observation_mask(tmp_path / "mask.mat")
        assert mask.contains(np.array([[0.6000000005, 0.1, 0.1], [0.600000002, 0.1, 0.1]])).tolist() == [
            True,
            False,
        ]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ObsMask": None}, "no variable 'ObsMask'; it holds BB, Margin, Res"),
            ({"Res": None}, "no variable 'Res'"),
            (
                {"ObsMask": np.zeros((3, 4))},
                r"'ObsMask' must be n x n x n finite numbers, got .* of \(3, 4\)",
            ),
            ({"ObsMask": np.zeros((3, 0, 4))}, "'ObsMask' must be n x n x n"),
            ({"BB": [[1.0, 2, 3]]}, "'BB' must be 2 x 3 finite numbers"),
            ({"BB": [[0, 0, np.nan], [1, 1, 1]]}, "'BB' must be 2 x 3 finite numbers"),
            ({"BB": [[0.0, 0, 2], [1, 1, 1]]}, "second row of 'BB' the greater one"),
            ({"Res": "ten"}, "'Res' must be 1 x 1 finite numbers"),
            ({"Res": [[0.0]]}, "'Res' must be positive"),
        ],
    )
    def test_damage(self, tmp_path: Path, changes: dict, message: str) -> None:
        content = {name: value for name, value in (MASK | changes).items() if value is not None}
        scipy.io.savemat(tmp_path / "mask.mat", content)
        with pytest.raises(InputError, match=rf"mask\.mat'.*{message}"):
            read_observation_mask(tmp_path / "mask.mat")


class TestPlane:
    def test_above_is_strict(self, tmp_path: Path) -> None:
        scipy.io.savemat(tmp_path / "plane.mat", {"P": [[0.0], [0.6], [-0.8], [2]]})
        plane = read_plane(tmp_path / "plane.mat")
        assert plane.tolist() == [0, 0.6, -0.8, 2]
        box = np.array([[0.0, 0, 0], [1, 1, 1]])
        truth = DtuGroundTruth(np.zeros((1, 3)), ObservationMask(CELLS > 0, box, 1.0), plane)
        # 0.6 y - 0.8 z + 2 at four points: 2, 0, -0.08, 5
        points = np.array([[7.0, 0, 0], [9, 0, 2.5], [0, 0, 2.6], [0, 5, 0]])
        assert truth.above_plane(points).tolist() == [True, False, False, True]

    @pytest.mark.parametrize(
        ("plane", "message"),
        [
            ({"Q": [[1.0]]}, "no variable 'P'; it holds Q"),
            ({}, "no variable 'P'; it holds nothing"),
            ({"P": [[0.0], [0], [1]]}, "'P' must be 4 x 1 finite numbers"),
            ({"P": [[0.0], [0], [0], [1]]}, "a plane has a normal"),
        ],
    )
    def test_damage(self, tmp_path: Path, plane: dict, message: str) -> None:
        scipy.io.savemat(tmp_path / "plane.mat", plane)
        with pytest.raises(InputError, match=rf"plane\.mat'.*{message}"):
            read_plane(tmp_path / "plane.mat")

    def test_broken_files(self, tmp_path: Path) -> None:
        path = tmp_path / "plane.mat"
        with pytest.raises(InputError, match=r"cannot read '.*plane\.mat'"):
            read_plane(path)
        scipy.io.savemat(path, {"P": np.ones((4, 1))}, do_compression=True)
        whole = path.read_bytes()
        damaged = whole[:140] + bytes([whole[140] ^ 255]) + whole[141:]
        hdf5 = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF"
        for content in (b"", b"no MATLAB file", whole[:100], whole[:150], damaged, hdf5):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"cannot read '.*plane\.mat'|no variable 'P'"):
                read_plane(path)

    def test_scipy_is_optional(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(ImportError, match=r'pip install "hess-plugin\[calibration\]"'):
            read_plane(tmp_path / "plane.mat")


class TestTree:
    def test_miniature_set(self, tmp_path: Path) -> None:
        points = surface_points(views_in_mm())
        write_official(tmp_path, points, scan=24)
        truth = read_ground_truth(tmp_path, 24)
        np.testing.assert_allclose(truth.points, points, rtol=1e-6)
        assert truth.observed.contains(truth.points).mean() > 0.999  # cells were set by the same points
        assert not truth.observed.contains(truth.points + 5000).any()
        assert truth.above_plane(truth.points).mean() == pytest.approx(0.98, abs=0.002)

    def test_names_have_two_ways_to_count(self, tmp_path: Path) -> None:
        assert cloud_path(tmp_path, 4).name == "stl004_total.ply"
        assert cloud_path(tmp_path, 114).name == "stl114_total.ply"
        write_official(tmp_path, np.eye(3) * 50, scan=4)
        assert len(read_ground_truth(tmp_path, 4).points) == 3
        with pytest.raises(InputError, match=r"stl005_total\.ply"):
            read_ground_truth(tmp_path, 5)
        (tmp_path / "ObsMask" / "ObsMask4_10.mat").unlink()
        with pytest.raises(InputError, match=r"ObsMask4_10\.mat"):
            read_ground_truth(tmp_path, 4)
