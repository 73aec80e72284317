"""Scenes from folders: the bundled photo set, geometry after resizing, and every error by its message."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hess_plugin
from hess_plugin.datasets import open_dataset
from hess_plugin.datasets.folder import FolderDataset, find_photos, load_scene
from hess_plugin.errors import InputError

OFFICE = Path(hess_plugin.__file__).parent / "assets" / "hololens_office"


def write_photos(folder: Path, count: int = 3, size: tuple[int, int] = (40, 30)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", size, (index * 40, 100, 200)).save(folder / f"{index:03d}.png")
    return folder


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    """Two views of 40 x 30 pixels in the scene layout; depth of pixel (u, v) is (1000 + 10 u + v) / 1000."""
    write_photos(tmp_path / "images", 2)
    (tmp_path / "depth").mkdir()
    v, u = np.mgrid[:30, :40]
    views = []
    for index in range(2):
        Image.fromarray((1000 + 10 * u + v).astype(np.uint16)).save(tmp_path / f"depth/{index:03d}.png")
        views.append(
            {
                "image": f"images/{index:03d}.png",
                "depth": f"depth/{index:03d}.png",
                "width": 40,
                "height": 30,
                "K": [[40, 0, 19.5], [0, 44, 14.5], [0, 0, 1]],
                "world_to_camera": [[1, 0, 0, index], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            }
        )
    record = {"scene": "toy", "depth_scale": 1000.0, "views": views}
    (tmp_path / "cameras.json").write_text(json.dumps(record))
    return tmp_path


def change(folder: Path, **values: object) -> None:
    """Change fields of cameras.json; a name like `K` is one of the second view, None removes a field."""
    path = folder / "cameras.json"
    record = json.loads(path.read_text())
    for name, value in values.items():
        target = record if name in ("depth_scale", "views") else record["views"][1]
        target[name] = value
        if value is None:
            del target[name]
    path.write_text(json.dumps(record))


class TestWithCameras:
    def test_bundled_scene_agrees_with_itself(self) -> None:
        """Depth of one view, seen from another, is the other's depth: cameras and depth follow the resize."""
        scene = load_scene(OFFICE, width=112, patch_size=8, max_views=12)
        assert scene.images.shape == (12, 3, 72, 112)
        assert scene.depth is not None
        assert scene.extrinsics is not None
        assert scene.intrinsics is not None
        differences = []
        for i in range(12):
            for j in range(12):
                points = scene.world_points[i][scene.mask[i]]
                in_j = points @ scene.extrinsics[j, :, :3].T + scene.extrinsics[j, :, 3]
                u, v = ((in_j @ scene.intrinsics[j].T)[:, :2] / in_j[:, 2:]).round().long().unbind(-1)
                inside = (in_j[:, 2] > 0.1) & (u >= 0) & (u < 112) & (v >= 0) & (v < 72)
                seen = scene.depth[j][v[inside], u[inside]]
                difference = (seen / in_j[inside, 2] - 1).abs()[seen > 0]
                if i != j and len(difference) > 300:
                    differences.append(difference[difference < 0.05].median().item())
        assert len(differences) > 20
        assert np.median(differences) < 0.02

    def test_hand_worked(self, scene_folder: Path) -> None:
        """40 x 30 to 20 x 16 (of 15, the nearest multiple of 8): scales 1/2 and 16/30."""
        scene = load_scene(scene_folder, width=20, patch_size=4)
        assert scene.name == "toy"
        assert scene.images.shape == (2, 3, 16, 20)
        expected = torch.tensor([[20.0, 0, 9.5], [0, 44 * 16 / 30, 7.5], [0, 0, 1]])
        torch.testing.assert_close(scene.intrinsics[0], expected)
        # New pixel (2, 3) has its centre at old pixel edges (5, 6.56): pixel u = 5, v = 6.
        assert scene.depth[0, 3, 2].item() == pytest.approx((1000 + 50 + 6) / 1000)
        assert scene.extrinsics[:, 0, 3].tolist() == [0, 1]

    def test_full_size_changes_nothing(self, scene_folder: Path) -> None:
        scene = load_scene(scene_folder, width=40, patch_size=10)
        v, u = np.mgrid[:30, :40]
        np.testing.assert_allclose(scene.depth[1], (1000 + 10 * u + v) / 1000, rtol=1e-6)
        assert scene.intrinsics[0, 1].tolist() == [0, 44, 14.5]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"depth_scale": None}, "no field 'depth_scale'"),
            ({"depth_scale": 0}, "'depth_scale' must be a positive number, got 0"),
            ({"views": []}, "'views' must be a list of at least one view"),
            ({"K": None}, r"cameras\.json', views\[1\] has no field 'K'"),
            ({"K": [[1, 2], [3, 4]]}, r"cameras\.json', views\[1\]: 'K' must be 3 x 3 numbers"),
            ({"K": [[1, 0, 0], [0, "a", 0], [0, 0, 1]]}, r"views\[1\]: 'K' must be 3 x 3 numbers"),
            ({"K": [[1, 0, 0], [0, math.nan, 0], [0, 0, 1]]}, r"views\[1\]: 'K' must be finite"),
            ({"world_to_camera": [[0] * 4] * 3}, r"views\[1\]: 'world_to_camera' must be 4 x 4 numbers"),
            ({"world_to_camera": None}, r"views\[1\] has no field 'world_to_camera'"),
            ({"image": 7}, r"views\[1\]: 'image' must be a text, got 7"),
            ({"image": "images/missing.png"}, "cannot read photo .*missing.png"),
            ({"depth": "depth/missing.png"}, "cannot read depth map .*missing.png"),
            ({"depth": "images/001.png"}, "must be one channel, got 3 channels"),
            ({"width": 41}, r"views\[1\]: 'image' has 40 x 30 pixels, but width and height say 41 x 30"),
        ],
    )
    def test_bad_fields(self, scene_folder: Path, values: dict, message: str) -> None:
        change(scene_folder, **values)
        with pytest.raises(InputError, match=message):
            load_scene(scene_folder, width=20, patch_size=4)

    def test_broken_json(self, scene_folder: Path) -> None:
        (scene_folder / "cameras.json").write_text("{")
        with pytest.raises(InputError, match=r"cannot read .*cameras\.json"):
            load_scene(scene_folder)

    def test_tall_photos_are_cropped_to_a_square(self, scene_folder: Path) -> None:
        record = json.loads((scene_folder / "cameras.json").read_text())
        for view in record["views"]:
            pixels = np.zeros((60, 20, 3), np.uint8)
            pixels[20:40] = 255  # what is left of 60 rows
            Image.fromarray(pixels).save(scene_folder / view["image"])
            Image.fromarray(np.ones((60, 20), np.uint16)).save(scene_folder / view["depth"])
            view |= {"width": 20, "height": 60}
        (scene_folder / "cameras.json").write_text(json.dumps(record))
        scene = load_scene(scene_folder, width=20, patch_size=4)
        assert scene.images.shape[1:] == (3, 20, 20)
        assert scene.images.min() > 0.95  # JPEG

    def test_bad_sizes(self, scene_folder: Path) -> None:
        with pytest.raises(InputError, match="multiple of the patch size 14, got 100"):
            load_scene(scene_folder, width=100)
        with pytest.raises(InputError, match="max_views must be at least 1, got 0"):
            load_scene(scene_folder, max_views=0)

    def test_no_cameras(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read .*cameras\.json"):
            load_scene(tmp_path)


class TestDataset:
    @pytest.fixture
    def root(self, scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Scenes "one" and "two" of two views each, and a folder that is no scene."""
        root = tmp_path_factory.mktemp("scenes")
        for name in ("two", "one"):
            shutil.copytree(scene_folder, root / name)
        (root / "notes").mkdir()
        return root

    def open(self, root: Path, **options: object) -> FolderDataset:
        return open_dataset("folder", root=root, **({"image_width": 20, "patch_size": 4} | options))

    def test_the_same_scene_as_load_scene(self, root: Path) -> None:
        dataset = self.open(root)
        assert dataset.scene_ids() == ["one", "two"]
        scene, known = dataset.load("two", None, seed=0), load_scene(root / "two", 20, 4)
        assert scene.name == "two"
        assert sorted(scene.view_ids) == list(known.view_ids) == ["000", "001"]
        order = [int(view_id) for view_id in scene.view_ids]
        for name in ("images", "extrinsics", "intrinsics", "depth"):
            assert torch.equal(getattr(scene, name), getattr(known, name)[order])

    def test_cloud(self, root: Path) -> None:
        with pytest.raises(InputError, match=r"2 skipped \(one: no points.ply; two: no points.ply\)"):
            self.open(root, with_cloud=True)
        shutil.copy(OFFICE / "points.ply", root / "one" / "points.ply")
        dataset = self.open(root, with_cloud=True)
        assert dataset.skipped == {"two": "no points.ply"}
        assert dataset.load("one", 1, 0).cloud.shape == (118810, 3)
        assert self.open(root).load("one", 1, 0).cloud is None

    def test_too_few_views(self, root: Path) -> None:
        edit = json.loads((root / "one" / "cameras.json").read_text())
        edit["views"].pop()
        (root / "one" / "cameras.json").write_text(json.dumps(edit))
        dataset = self.open(root, min_views=2)
        assert dataset.scene_ids() == ["two"]
        assert dataset.skipped == {"one": "1 views, 2 are needed"}

    def test_settings_are_json_without_paths(self, root: Path) -> None:
        settings = self.open(root).settings
        assert settings == {"image_width": 20, "patch_size": 4, "min_views": 1, "with_cloud": False}

    def test_damaged_scene_is_named(self, root: Path) -> None:
        change(root / "two", depth="depth/missing.png")
        with pytest.raises(InputError, match=r"cannot read depth map '.*two/depth/missing.png'"):
            self.open(root).load("two", 2, 0)
        (root / "two" / "cameras.json").write_text("{")
        with pytest.raises(InputError, match=r"cannot read '.*two/cameras.json'"):
            self.open(root)

    def test_folders_that_hold_no_scene(self, scene_folder: Path, tmp_path_factory) -> None:
        with pytest.raises(InputError, match="is itself a scene; give the folder that holds it"):
            self.open(scene_folder)
        with pytest.raises(InputError, match=r"holds photos without cameras and depth; calibration needs"):
            self.open(write_photos(tmp_path_factory.mktemp("photos")))
        with pytest.raises(InputError, match=r"holds no scene: none of its folders has a cameras\.json"):
            self.open(tmp_path_factory.mktemp("empty"))


class TestPhotosAlone:
    @pytest.mark.parametrize("sub", ["", "images"])
    def test_sorted_and_only_photos(self, tmp_path: Path, sub: str) -> None:
        write_photos(tmp_path / sub)
        (tmp_path / sub / "notes.txt").write_text("not a photo")
        assert [path.stem for path in find_photos(tmp_path)] == ["000", "001", "002"]

    @pytest.mark.parametrize(
        ("most", "expected"), [(1, [0]), (2, [0, 4]), (3, [0, 2, 4]), (9, [0, 1, 2, 3, 4])]
    )
    def test_evenly_spaced(self, tmp_path: Path, most: int, expected: list[int]) -> None:
        write_photos(tmp_path, 5)
        assert [int(path.stem) for path in find_photos(tmp_path, most)] == expected

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no photos in .* nor in its folder 'images'"):
            find_photos(tmp_path)
        with pytest.raises(InputError, match="there is no folder"):
            find_photos(tmp_path / "missing")
        with pytest.raises(InputError, match="max_views must be at least 1, got 0"):
            find_photos(tmp_path, 0)
