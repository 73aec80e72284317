"""Damaged DTU trees: the file and its field are named, undamaged views can still be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hess_plugin.datasets.dtu import DtuDataset
from hess_plugin.errors import InputError


def open_dtu(root: Path) -> DtuDataset:
    return DtuDataset(root, image_width=180, patch_size=4)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def remove(path: Path) -> None:
    path.unlink()


def blacken(path: Path) -> None:
    with Image.open(path) as file:
        size = file.size
    Image.new("L", size).save(path)


def other_size(path: Path) -> None:
    Image.new("RGB", (180, 90)).save(path)


def unknown(path: Path) -> None:
    np.save(path, np.full((120, 180), np.inf))


class TestDamage:
    """View 1 of a tree is damaged: the file is named, the others can still be read."""

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            ("images/00000001.jpg", cut, r"cannot read photo '.*images/00000001\.jpg'"),
            (
                "images/00000001.jpg",
                other_size,
                r"depths/00000001\.npy' has 180 x 120 pixels, its image 180 x 90",
            ),
            ("cams/00000001_cam.txt", remove, r"cannot read '.*cams/00000001_cam\.txt'"),
            ("cams/00000001_cam.txt", cut, r"cams/00000001_cam\.txt'"),
            ("depths/00000001.npy", cut, r"cannot read depth map '.*depths/00000001\.npy'"),
            ("depths/00000001.npy", remove, r"cannot read depth map '.*depths/00000001\.npy'"),
            ("depths/00000001.npy", unknown, r"depths/00000001\.npy': no pixel of its mask has a depth"),
            ("binary_masks/00000001.png", remove, r"binary_masks/00000001\.png'"),
            ("binary_masks/00000001.png", cut, r"binary_masks/00000001\.png'"),
            (
                "binary_masks/00000001.png",
                blacken,
                r"depths/00000001\.npy': no pixel of its mask has a depth",
            ),
        ],
    )
    def test_pointmap(self, pointmap: Path, name: str, damage: Callable, message: str) -> None:
        damage(pointmap / "scan1" / name)
        self.check(open_dtu(pointmap), "scan1", message)

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            (
                "Rectified/scan2_train/rect_002_3_r5000.png",
                cut,
                r"cannot read photo '.*rect_002_3_r5000\.png'",
            ),
            ("Rectified/scan2_train/rect_002_3_r5000.png", remove, r"rect_002_3_r5000\.png'"),
            ("Depths/scan2_train/depth_map_0001.pfm", cut, r"depth_map_0001\.pfm': 45 x 30 values take 5400"),
            ("Depths/scan2_train/depth_map_0001.pfm", remove, r"depth_map_0001\.pfm'"),
            ("Depths/scan2_train/depth_visual_0001.png", remove, r"depth_visual_0001\.png'"),
            ("Depths/scan2_train/depth_visual_0001.png", blacken, r"depth_map_0001\.pfm': no pixel"),
            ("Depths/scan2_train/depth_visual_0001.png", other_size, "depth_visual has 180 x 90 pixels"),
            ("Rectified/scan2_train/rect_002_3_r5000.png", other_size, "depth_map has 45 x 30 .* a quarter"),
            ("Cameras/train/00000001_cam.txt", remove, r"Cameras/train/00000001_cam\.txt'"),
        ],
    )
    def test_training(self, training: Path, name: str, damage: Callable, message: str) -> None:
        damage(training / name)
        self.check(open_dtu(training), "scan2", message)

    def check(self, data: DtuDataset, scene_id: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            data.read_view(scene_id, "00000001")
        with pytest.raises(InputError, match=message):
            data.load(scene_id, None, 0)
        assert data.read_view(scene_id, "00000000").depth is not None

    def test_pair_file(self, training: Path) -> None:
        (training / "Cameras" / "pair.txt").write_text("")
        with pytest.raises(InputError, match=r"pair\.txt' is no list of views"):
            open_dtu(training)

    def test_camera_of_another_size(self, training: Path, pointmap: Path) -> None:
        """A camera for a depth map a quarter as large, and one for the image instead of the depth map."""
        of_training = training / "Cameras" / "train" / "00000001_cam.txt"
        of_pointmap = pointmap / "scan1" / "cams" / "00000001_cam.txt"
        small, large = of_training.read_text(), of_pointmap.read_text()
        of_training.write_text(large)
        of_pointmap.write_text(small)
        self.check(open_dtu(training), "scan2", r"00000001_cam\.txt': 'intrinsic' .* of 45 x 30 pixels")
        self.check(open_dtu(pointmap), "scan1", r"00000001_cam\.txt': 'intrinsic' .* of 180 x 120 pixels")
