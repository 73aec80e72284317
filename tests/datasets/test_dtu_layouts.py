"""Both DTU trees view by view: what is in the files is in the views, at the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dtu_tree import lit, object_mask, views_in_mm, write_pfm
from PIL import Image

from hess_plugin.datasets.base import resize_view
from hess_plugin.datasets.dtu_layouts import PointmapLayout, TrainingLayout, erode


class TestPointmap:
    def test_views_are_those_of_the_files(self, trees: Path) -> None:
        layout = PointmapLayout(trees / "pointmap")
        assert layout.scans() == [1, 2, 3]
        assert layout.view_ids(1) == [f"{index:08d}" for index in range(5)]
        for index, truth in enumerate(views_in_mm()):
            view = layout.read_view(1, f"{index:08d}")
            assert np.abs(view.image.astype(float) - truth.rgb).mean() < 3  # JPEG
            np.testing.assert_allclose(view.intrinsics, truth.K, rtol=1e-8)
            np.testing.assert_allclose(view.extrinsics, truth.world_to_camera[:3], rtol=1e-8)
            # NaN, infinity and 0 in turn are unknown; so is all outside the eroded ellipse
            expected = np.where(erode(object_mask(truth.depth.shape), 10), truth.depth, 0)
            assert view.depth is not None
            np.testing.assert_allclose(view.depth, expected, rtol=1e-6)
            assert 0.3 < (expected > 0).mean() < 0.6

    def test_photo_of_another_size(self, pointmap: Path) -> None:
        """K is for the depth map: a photo of three times its size gives the same resized view."""
        before = PointmapLayout(pointmap).read_view(1, "00000001")
        path = pointmap / "scan1" / "images" / "00000001.jpg"
        Image.fromarray(before.image.repeat(3, 0).repeat(3, 1)).save(path, quality=100)
        after = PointmapLayout(pointmap).read_view(1, "00000001")
        assert after.image.shape == (360, 540, 3)
        # by blocks of 3 x 3 pixels: u' = 3 u + 1, since the centre of pixel 0 becomes that of pixel 1
        expected = np.array([[3, 0, 1], [0, 3, 1], [0, 0, 1]]) @ before.intrinsics
        np.testing.assert_allclose(after.intrinsics, expected, rtol=1e-12)
        small, large = resize_view(before, 60, 4), resize_view(after, 60, 4)
        np.testing.assert_array_equal(large.depth, small.depth)
        np.testing.assert_allclose(large.intrinsics, small.intrinsics, rtol=1e-12)
        assert np.abs(large.image.astype(float) - small.image).mean() < 3

    @pytest.mark.parametrize("size", [1, 2, 3, 10])
    def test_erosion_is_opencvs(self, size: int) -> None:
        """Pixel (r, c) stays if none of (r - size // 2 ..., c - size // 2 ...) inside the image is unset."""
        mask = np.random.default_rng(size).random((23, 17)) < 0.98
        before, after = size // 2, size - size // 2
        expected = [
            [
                mask[max(0, r - before) : r + after, max(0, c - before) : c + after].all()
                for c in range(mask.shape[1])
            ]
            for r in range(mask.shape[0])
        ]
        assert erode(mask, size).tolist() == expected
        assert size == 1 or 0 < np.sum(expected) < mask.sum()


class TestTraining:
    @pytest.mark.parametrize("light", [0, 3, 6])
    def test_views_are_those_of_the_files(self, trees: Path, light: int) -> None:
        layout = TrainingLayout(trees / "training", light)
        assert layout.scans() == [2]
        assert layout.view_ids(2) == [f"{index:08d}" for index in range(5)]
        for index, truth in enumerate(views_in_mm()):
            view = layout.read_view(2, f"{index:08d}")
            np.testing.assert_array_equal(view.image, lit(truth.rgb, light))
            np.testing.assert_allclose(view.intrinsics, truth.K, rtol=1e-8)
            known = np.where(object_mask((30, 45)), truth.depth[::4, ::4], 0)
            assert view.depth is not None
            np.testing.assert_allclose(view.depth[::4, ::4], known, rtol=1e-6)

    def test_depth_goes_to_the_nearest_pixels(self, training: Path) -> None:
        """Depth pixel u is at image pixel 4u: 4u - 2 to 4u + 1 get its value, beyond the last all do."""
        write_pfm(
            training / "Depths/scan2_train/depth_map_0000.pfm", 100 + np.arange(45.0) * np.ones((30, 1))
        )
        Image.new("L", (45, 30), 255).save(training / "Depths/scan2_train/depth_visual_0000.png")
        depth = TrainingLayout(training, light=3).read_view(2, "00000000").depth
        assert depth is not None
        assert depth.shape == (120, 180)
        assert (depth[:, :11] - 100).tolist() == [[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]] * 120
        assert (depth[0, 172:] - 100).tolist() == [43, 43, 44, 44, 44, 44, 44, 44]

    def test_true_sizes(self, training: Path) -> None:
        """K of the 640 x 512 images is that of 1600 x 1200, halved and cropped by (80, 44)."""
        camera = (
            "extrinsic\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n\nintrinsic\n361.54125 0.0 82.900625\n"
            "0.0 360.3975 66.383875\n0.0 0.0 1.0\n\n425.0 2.5\n"
        )
        (training / "Cameras/train/00000000_cam.txt").write_text(camera)
        write_pfm(training / "Depths/scan2_train/depth_map_0000.pfm", np.full((128, 160), 700.0))
        Image.new("L", (160, 128), 255).save(training / "Depths/scan2_train/depth_visual_0000.png")
        Image.new("RGB", (640, 512)).save(training / "Rectified/scan2_train/rect_001_3_r5000.png")
        view = TrainingLayout(training, light=3).read_view(2, "00000000")
        expected = [[2892.33 / 2, 0, 823.205 / 2 - 80], [0, 2883.18 / 2, 619.071 / 2 - 44], [0, 0, 1]]
        np.testing.assert_allclose(view.intrinsics, expected, rtol=1e-12)
