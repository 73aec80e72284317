"""CO3Dv2 read from a truthful miniature: which sequences count, their cameras, depth, masks and clouds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from co3d_tree import Truth, edit_json, write_plain, write_traps

from hess_plugin.datasets import UnusableView, open_dataset
from hess_plugin.datasets.co3d import Co3dDataset, decode_depth
from hess_plugin.datasets.scene import Scene
from hess_plugin.errors import InputError

SIZES = {"image_width": 56, "patch_size": 7}


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    """A tree with everything in it that is hard to read, and the truth of its views; not to be changed."""
    root = tmp_path_factory.mktemp("co3d")
    return root, write_traps(root)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in which all is well; not to be changed."""
    root = tmp_path_factory.mktemp("co3d_plain")
    write_plain(root)
    return root


def open_tree(root: Path, **options: object) -> Co3dDataset:
    dataset = open_dataset("co3d", root=root, **(SIZES | options))
    assert isinstance(dataset, Co3dDataset)
    return dataset


class TestWhichSequences:
    def test_default_is_both_many_view_dev_sequences(self, traps: tuple[Path, Truth]) -> None:
        dataset = open_tree(traps[0])
        assert dataset.scene_ids() == ["apple/first", "apple/portrait"]
        assert dataset.view_ids("apple/first") == ["000000", "000002", "000006", "000008"]  # the known ones
        assert dataset.skipped == {}
        assert dataset.settings["categories"] == ["apple"]

    def test_every_reason_to_skip(self, traps: tuple[Path, Truth]) -> None:
        dataset = open_tree(traps[0], subset="fewview_dev:test")
        assert dataset.scene_ids() == ["apple/portrait", "chair/scaled"]
        assert dataset.skipped == {
            "apple/low": "its viewpoint quality is 0.40, not above 0.5",
            "apple/null": "its viewpoint quality is null, not above 0.5",
            "apple/nan": "its viewpoint quality is nan, not above 0.5",
            "apple/broken": (
                "frame 2 in frame_annotations.jgz: 'viewpoint.T' has a length of 2.0e+05, more than 1e+05"
            ),
        }
        assert "apple/low" in open_tree(traps[0], subset="fewview_dev:test", min_quality=0.3).scene_ids()
        with pytest.raises(
            InputError, match="'apple/nan' of co3d cannot be used: its viewpoint quality is n"
        ):
            dataset.load("apple/nan", 1, 0)

    def test_too_few_frames_are_counted(self, traps: tuple[Path, Truth]) -> None:
        dataset = open_tree(traps[0], subset="fewview_dev:train", min_views=4)
        assert dataset.scene_ids() == ["apple/first"]
        assert dataset.skipped["chair/legacy"] == "it has 3 frames in the set list, 4 are needed"
        with pytest.raises(
            InputError, match=r"co3d has no usable scene, 2 skipped .*first: it has 4 frames in"
        ):
            open_tree(traps[0], min_views=5)

    def test_categories(self, traps: tuple[Path, Truth]) -> None:
        for named in ("chair", ["chair"]):
            dataset = open_tree(traps[0], subset="fewview_dev", categories=named)
            assert dataset.scene_ids() == ["chair/keyless", "chair/legacy"]
        both = open_tree(traps[0], subset="fewview_dev", categories="chair,apple")
        assert both.settings["categories"] == ["apple", "chair"]

    def test_evaluation_sequences_can_be_left_out(self, traps: tuple[Path, Truth]) -> None:
        dataset = open_tree(traps[0], exclude="fewview_dev:test")
        assert dataset.scene_ids() == ["apple/first"]
        assert dataset.skipped == {"apple/portrait": "it is also in fewview_dev:test"}

    def test_settings_are_json_without_paths(self, traps: tuple[Path, Truth]) -> None:
        settings = open_tree(traps[0], with_cloud=True).settings
        assert (
            json.loads(json.dumps(settings))
            == settings
            == {
                **{"image_width": 56, "patch_size": 7, "min_views": 1, "subset": "manyview_dev:train"},
                **{"exclude": None, "categories": ["apple"], "min_quality": 0.5, "with_background": False},
                "with_cloud": True,
            }
        )
        assert str(traps[0]) not in json.dumps(settings)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"subset": "manyview_dev:all"},
                "with :train, :val, :test or nothing behind it; got 'manyview_dev:",
            ),
            ({"subset": ""}, "a subset is the name of a set list"),
            ({"subset": "fewview_dev_0"}, "names no fewview_dev_0 for apple, chair; it names fewview_dev, "),
            ({"categories": "pear"}, "list.json' has no category 'pear'; it has apple, chair"),
            (
                {"categories": "chair"},
                "names no manyview_dev_0 or manyview_dev_1 for chair; it names fewview_dev",
            ),
            ({"exclude": "fewview_dev_7"}, "names no fewview_dev_7 for apple"),
        ],
    )
    def test_bad_options(self, traps: tuple[Path, Truth], options: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_tree(traps[0], **options)


class TestViews:
    @pytest.mark.parametrize("subset", ["fewview_dev:train", "fewview_dev:test", "manyview_test_0"])
    def test_cameras_and_photos_are_the_true_ones(self, traps: tuple[Path, Truth], subset: str) -> None:
        """Landscape and portrait, both intrinsics formats, and a record that names none."""
        dataset, seen = open_tree(traps[0], subset=subset), 0
        for scene_id in dataset.scene_ids():
            for view_id in dataset.view_ids(scene_id):
                view, true = dataset.read_view(scene_id, view_id), traps[1][scene_id][int(view_id)]
                np.testing.assert_allclose(view.extrinsics, true.world_to_camera[:3], atol=1e-9)
                np.testing.assert_allclose(view.intrinsics, true.K, atol=1e-9)
                assert np.abs(view.image.astype(int) - true.rgb).mean() < 6  # JPEG
                seen += 1
        assert seen >= 2

    def test_depth_is_decoded_scaled_and_masked(self, traps: tuple[Path, Truth]) -> None:
        """Half floats are right to 0.05 %; unknown depth is infinite in one file, 0 in others."""
        root, truth = traps
        for scene_id, subset in (("chair/scaled", "fewview_dev:test"), ("apple/first", "fewview_dev:train")):
            whole, masked = (
                open_tree(root, subset=subset, with_background=all_of_it) for all_of_it in (True, False)
            )
            for number in (0, 2, 4):
                true = truth[scene_id][number].depth
                depth = whole.read_view(scene_id, f"{number:06d}").depth
                np.testing.assert_allclose(depth, true, rtol=5e-4)
                trusted = masked.read_view(scene_id, f"{number:06d}").depth
                assert 0.1 < (trusted > 0).sum() / (true > 0).sum() < 0.9
                np.testing.assert_array_equal(trusted[trusted > 0], depth[trusted > 0])

    def test_frames_without_depth(self, traps: tuple[Path, Truth]) -> None:
        dataset = open_tree(traps[0], subset="fewview_dev")
        assert dataset.read_view("apple/first", "000010").depth is None
        scene = dataset.load("apple/first", None, seed=0)
        last = scene.view_ids.index("000010")
        assert scene.mask.flatten(1).any(1).tolist() == [index != last for index in range(6)]

    def test_cloud(self, traps: tuple[Path, Truth]) -> None:
        """It lies on the surfaces that depth shows; without `with_cloud` it is not read."""
        assert open_tree(traps[0]).load("apple/first", 1, 0).cloud is None
        scene = open_tree(traps[0], with_cloud=True, with_background=True).load("apple/first", None, 0)
        points = scene.world_points[scene.mask]
        distance = torch.cdist(scene.cloud, points).amin(1)
        assert len(distance) > 300
        assert distance.median() < 0.05  # metres; neighbouring pixels are as far apart

    def test_decoding(self) -> None:
        for kind in (np.uint16, np.int32):  # Pillow's, by its version
            bits = np.array([[16640, 0, 31744, 32256, 48128]], kind)  # 2.5, 0, infinite, NaN, -1
            assert decode_depth(bits).tolist() == [[2.5, 0, 0, 0, 0]]


class TestHiddenFrames:
    def test_black_frames_are_passed_over_and_named(self, tmp_path: Path) -> None:
        write_traps(tmp_path)
        path = tmp_path / "apple" / "set_lists" / "set_lists_manyview_test_0.json"
        edit_json(path, lambda lists: lists["train"].extend(lists["test"]))
        dataset = open_tree(tmp_path, subset="manyview_test_0")
        scene = dataset.load("apple/redacted", None, seed=0)
        assert set(scene.view_ids) == {"000000", "000004"}
        assert set(scene.unusable_views) == {"000002", "000006"}
        assert scene.images.amax((1, 2, 3)).min() > 0.5
        with pytest.raises(UnusableView, match="the image is black"):
            dataset.read_view("apple/redacted", "000002")
        with pytest.raises(
            InputError, match=r"2 usable views of 4, 3 are needed; 00000.: the image is black"
        ):
            dataset.load("apple/redacted", 3, seed=0)


def share_that_agrees(scene: Scene) -> tuple[float, float]:
    """Of each view's points that others see: the share within 2 % of their depth, and the median error."""
    errors = []
    for i in range(len(scene.images)):
        points = scene.world_points[i][scene.mask[i]]
        for j in set(range(len(scene.images))) - {i}:
            in_j = points @ scene.extrinsics[j, :, :3].T + scene.extrinsics[j, :, 3]
            u, v = ((in_j @ scene.intrinsics[j].T)[:, :2] / in_j[:, 2:]).round().long().unbind(-1)
            inside = (in_j[:, 2] > 0.1) & (u >= 0) & (v >= 0)
            inside &= (u < scene.images.shape[3]) & (v < scene.images.shape[2])
            seen = scene.depth[j][v[inside], u[inside]]
            errors.append((seen / in_j[inside, 2] - 1).abs()[seen > 0])
    error = torch.cat(errors)
    assert len(error) > 1000
    return (error < 0.02).float().mean().item(), error.median().item()


class TestPlainTree:
    def test_depth_of_one_view_lies_on_the_surface_of_the_other(self, plain: Path) -> None:
        """Cameras, depth and resizing fit; with the camera's axes left as CO3D has them, they would not."""
        dataset = open_tree(plain, with_background=True)
        assert len(dataset.scene_ids()) == 4
        for scene_id in dataset.scene_ids():
            assert len(dataset.view_ids(scene_id)) >= 6
            scene = dataset.load(scene_id, 6, seed=0)
            share, median = share_that_agrees(scene)
            assert share > 0.6, scene_id
            assert median < 0.012, scene_id
        flip = torch.tensor([-1.0, -1.0, 1.0])[:, None]
        unturned = Scene("unturned", scene.images, scene.extrinsics * flip, scene.intrinsics, scene.depth)
        assert share_that_agrees(unturned)[0] < 0.1

    def test_other_categories_change_no_draw(self, plain: Path) -> None:
        alone, both = open_tree(plain, categories="bench"), open_tree(plain)
        scene_id = alone.scene_ids()[0]
        assert alone.load(scene_id, 3, 7).view_ids == both.load(scene_id, 3, 7).view_ids
        assert len({both.load(scene_id, 3, seed).view_ids for seed in range(6)}) > 3
        assert len({tuple(both.choose(2, seed)) for seed in range(20)}) > 3
