"""The DTU dataset: surfaces that views share, clouds, splits and options."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dtu_tree import surface_points, views_in_mm

from hess_plugin.datasets import Scene, open_dataset
from hess_plugin.datasets.dtu import TEST_SCANS, VALIDATION_SCANS, DtuDataset
from hess_plugin.errors import InputError


def open_dtu(root: Path, width: int = 180, **options) -> DtuDataset:
    return DtuDataset(root, image_width=width, patch_size=4, **options)


def surface_distances(scene: Scene) -> list[float]:
    """Median distance along the ray, mm, between points of one view and the depth of another, per pair."""
    assert scene.depth is not None
    assert scene.extrinsics is not None
    assert scene.intrinsics is not None
    count, height, width = scene.depth.shape
    found = []
    for i, j in ((i, j) for i in range(count) for j in range(count) if i != j):
        points = scene.world_points[i][scene.mask[i]]
        in_other = points @ scene.extrinsics[j, :, :3].T + scene.extrinsics[j, :, 3]
        place = (in_other @ scene.intrinsics[j].T)[:, :2] / in_other[:, 2:]
        u, v = place.round().long().unbind(-1)
        inside = (in_other[:, 2] > 1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        seen = scene.depth[j][v[inside], u[inside]]
        distance = (seen - in_other[inside, 2]).abs()[seen > 0]
        if len(distance) > 500:
            found.append(distance.median().item())
    return found


class TestScenes:
    def test_pointmap_views_share_a_surface(self, trees: Path) -> None:
        """Sensor depth of the photos agrees to 0.4 % of 680 mm at this size."""
        scene = open_dtu(trees / "pointmap").load("scan1", None, 0)
        assert scene.images.shape == (5, 3, 120, 180)
        distances = surface_distances(scene)
        assert len(distances) == 20
        assert np.median(distances) < 3
        assert max(distances) < 6

    @pytest.mark.parametrize(("width", "height"), [(112, 76), (244, 164)])
    def test_at_other_sizes(self, trees: Path, width: int, height: int) -> None:
        """75 and 163 rows are rounded to patches, so that width and height are scaled differently."""
        scene = open_dtu(trees / "pointmap", width).load("scan1", None, 0)
        assert scene.images.shape[2:] == (height, width)
        assert np.median(surface_distances(scene)) < 4

    def test_training_views_share_a_surface(self, trees: Path) -> None:
        """Depth on a grid four times coarser: 0.4 % becomes 1.1 % of 680 mm."""
        distances = surface_distances(open_dtu(trees / "training").load("scan2", None, 0))
        assert len(distances) == 20
        assert np.median(distances) < 8.5

    def test_cloud(self, trees: Path) -> None:
        scans = {"scans": [1], "with_cloud": True}
        scene = open_dtu(trees / "pointmap", **scans).load("scan1", 2, 0)
        assert scene.cloud is not None
        np.testing.assert_allclose(scene.cloud, surface_points(views_in_mm()), rtol=1e-5, atol=1e-3)
        points = scene.world_points[scene.mask]
        assert torch.cdist(points[::97], scene.cloud).amin(1).median() < 10  # cloud and depth: one world
        assert open_dtu(trees / "pointmap").load("scan1", 2, 0).cloud is None


class TestOptions:
    def test_splits_do_not_overlap(self) -> None:
        assert len(set(TEST_SCANS)) == 22
        assert len(set(VALIDATION_SCANS)) == 18
        assert not set(TEST_SCANS) & set(VALIDATION_SCANS)

    @pytest.mark.parametrize(
        ("scans", "used", "setting"),
        [
            (None, ["scan1", "scan2", "scan3"], None),
            ("test", ["scan1"], "test"),
            ("validation", ["scan3"], "validation"),
            ("training", ["scan2"], "training"),
            ("3, 1,3", ["scan1", "scan3"], [1, 3]),
            ([2], ["scan2"], [2]),
        ],
    )
    def test_scans(
        self, trees: Path, scans: str | list[int] | None, used: list[str], setting: object
    ) -> None:
        data = open_dtu(trees / "pointmap", scans=scans)
        assert data.scene_ids() == used
        assert data.settings["scans"] == setting
        missing = {"test": len(TEST_SCANS) - 1, "validation": len(VALIDATION_SCANS) - 1}
        assert len(data.skipped) == (missing.get(scans, 0) if isinstance(scans, str) else 0)
        assert set(data.skipped.values()) <= {"the scan is not there"}

    def test_settings_say_what_decides(self, trees: Path) -> None:
        data = open_dataset("dtu", root=trees / "pointmap", image_width=112, patch_size=8, scans="1")
        assert data.settings == {
            "image_width": 112,
            "patch_size": 8,
            "min_views": 1,
            "layout": "pointmap",
            "scans": [1],
            "with_cloud": False,
        }

    def test_seeds(self, trees: Path) -> None:
        data = open_dtu(trees / "pointmap", 60)
        drawn = {data.load("scan1", 3, seed).view_ids for seed in range(8)}
        assert len(drawn) > 3
        assert all(len(set(ids)) == 3 for ids in drawn)
        with pytest.raises(InputError, match="'scan2' of dtu has 2 usable views of 2, 3 are needed"):
            data.load("scan2", 3, 0)

    def test_skipped(self, trees: Path, tmp_path: Path) -> None:
        root = tmp_path / "tree"
        shutil.copytree(trees / "pointmap", root)
        shutil.rmtree(root / "scan2" / "cams")
        (root / "scan007").mkdir()  # no scan is named so
        data = open_dtu(root, min_views=3)
        assert data.scene_ids() == ["scan1"]
        assert data.skipped == {
            "scan2": "there is no folder 'cams'",
            "scan3": "has 2 views of at least 3",
        }
        data = open_dtu(root, with_cloud=True)
        assert data.skipped["scan3"] == "there is no file 'Points/stl/stl003_total.ply'"
        with pytest.raises(InputError, match="'scan2' of dtu cannot be used: there is no folder 'cams'"):
            data.load("scan2", 1, 0)
        with pytest.raises(InputError, match="dtu has no scene 'scan9'"):
            data.load("scan9", 1, 0)

    def test_skipped_in_training(self, trees: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(trees / "training", tmp_path / "tree"))
        shutil.rmtree(root / "Depths" / "scan2_train")
        assert open_dtu(root).skipped == {"scan2": "there is no folder 'Depths/scan2_train'"}

    def test_light(self, trees: Path) -> None:
        default, third, dark = (open_dtu(trees / "training", light=light) for light in (None, 3, 6))
        assert default.settings == third.settings
        assert (third.settings["light"], dark.settings["light"]) == (3, 6)
        assert dark.load("scan2", 2, 0).images.mean() < 0.8 * default.load("scan2", 2, 0).images.mean()

    @pytest.mark.parametrize(
        ("tree", "options", "message"),
        [
            ("pointmap", {"scans": "1,9"}, "has no scan 9; there are 1, 2, 3"),
            (
                "pointmap",
                {"scans": "all"},
                "scans must be numbers like '1,4,9' or one of training, .* got 'all'",
            ),
            ("pointmap", {"scans": ""}, "scans must be numbers"),
            ("pointmap", {"scans": []}, "scans must be numbers"),
            ("pointmap", {"scans": [-1]}, "scans must be numbers"),
            ("pointmap", {"light": 3}, "light is 3, but .* is the point-map tree"),
            ("training", {"light": 7}, "light must be from 0 to 6, got 7"),
            (".", {}, "must hold scanN/depths .* and holds neither"),
            ("missing", {}, "holds neither"),
        ],
    )
    def test_bad_options(self, trees: Path, tree: str, options: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_dtu(trees / tree, **options)

    def test_trees_must_be_apart(self, trees: Path, tmp_path: Path) -> None:
        for name in ("pointmap", "training"):
            shutil.copytree(trees / name, tmp_path, dirs_exist_ok=True)
        with pytest.raises(InputError, match="and holds both"):
            open_dtu(tmp_path)
        shutil.rmtree(tmp_path / "Rectified")
        for scan in (1, 2, 3):
            shutil.rmtree(tmp_path / f"scan{scan}" / "depths")
        with pytest.raises(InputError, match="holds neither; other trees of DTU have no depth maps"):
            open_dtu(tmp_path)
