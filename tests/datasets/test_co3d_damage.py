"""Damaged CO3Dv2 trees, and trees that only look like it: one line that names file and field."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from co3d_tree import edit_json, write_json, write_traps
from PIL import Image

from hess_plugin.datasets import open_dataset
from hess_plugin.datasets.co3d import Co3dDataset
from hess_plugin.errors import InputError

SET_LIST = "set_lists/set_lists_manyview_dev_0.json"
SEQUENCES, FRAMES = "sequence_annotations.jgz", "frame_annotations.jgz"
FRAME = f"frame 2 in {FRAMES}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("co3d")
    write_traps(root)
    return root


@pytest.fixture
def tree(original: Path, tmp_path: Path) -> Path:
    """A copy of the tree that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "tree"))


def open_tree(root: Path, **options: object) -> Co3dDataset:
    options = {"image_width": 56, "patch_size": 7} | options
    return open_dataset("co3d", root=root, **options)  # type: ignore[return-value]


def change_frame(tree: Path, number: int, change: Callable[[dict], None]) -> None:
    """Let a function change the record of a frame of sequence "first"."""

    def find(records: list[dict]) -> None:
        for record in records:
            if (record["sequence_name"], record["frame_number"]) == ("first", number):
                change(record)

    edit_json(tree / "apple" / FRAMES, find)


def put(name: str, value: object) -> Callable[[dict], None]:
    """A change of one field; dots lead into it, and None of a value takes it away."""

    def change(record: dict) -> None:
        *path, last = name.split(".")
        for part in path:
            record = record[part]
        record[last] = value

    return change


class TestSequencesThatAreSkipped:
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("viewpoint.T", [float("nan"), 0, 0], f"{FRAME}: 'viewpoint.T' is not finite"),
            ("viewpoint.R", [[1, 0, 0]] * 3, f"{FRAME}: 'viewpoint.R' is no rotation"),
            ("viewpoint.focal_length", [0, 1], f"{FRAME}: 'viewpoint.focal_length' is not positive"),
            ("viewpoint.principal_point", [None, 0], f"{FRAME}: 'viewpoint.principal_point' is not finite"),
            ("viewpoint", None, f"{FRAME}: 'viewpoint' is null"),
            ("frame_number", 99, "frame 2 is in the set list, but not in frame_annotations.jgz"),
        ],
    )
    def test_one_bad_camera(self, tree: Path, name: str, value: object, reason: str) -> None:
        change_frame(tree, 2, put(name, value))
        dataset = open_tree(tree)
        assert dataset.scene_ids() == ["apple/portrait"]
        assert dataset.skipped == {"apple/first": reason}

    def test_frames_that_are_not_listed_do_not_matter(self, tree: Path) -> None:
        change_frame(tree, 4, put("viewpoint", "what?"))  # held out
        assert open_tree(tree).scene_ids() == ["apple/first", "apple/portrait"]

    def test_no_annotation_and_no_cloud(self, tree: Path) -> None:
        path = tree / "apple" / SEQUENCES
        edit_json(path, lambda records: records[1].update(point_cloud=None))
        edit_json(path, lambda records: records.pop(0))
        with pytest.raises(InputError, match=r"no usable scene, 2 skipped .*portrait: it has no point cloud"):
            open_tree(tree, with_cloud=True)
        assert open_tree(tree).skipped == {
            "apple/first": "it is in the set list, but not in sequence_annotations.jgz"
        }


class TestAnnotations:
    @pytest.mark.parametrize(
        ("name", "value", "field"),
        [
            ("image.size", [40], "'image.size' must be 2 numbers"),
            ("image.size", [40, 0.5], "'image.size' must be height and width, got"),
            ("image.path", 7, "'image.path' must be a text, got 7"),
            ("image", {"size": [40, 60]}, "has no field 'image.path'"),
            ("viewpoint", {"R": 1}, "'viewpoint.R' must be 3 x 3 numbers"),
            ("viewpoint.T", "far", "'viewpoint.T' must be 3 numbers"),
            (
                "viewpoint.intrinsics_format",
                "pixels",
                "'viewpoint.intrinsics_format' must be one of ndc_norm_",
            ),
            ("depth.scale_adjustment", 0, "'depth.scale_adjustment' must be a positive number, got 0.0"),
            ("depth", {"path": "x"}, "has no field 'depth.scale_adjustment'"),
        ],
    )
    def test_frames(self, tree: Path, name: str, value: object, field: str) -> None:
        change_frame(tree, 2, put(name, value))
        with pytest.raises(InputError, match=rf"apple/frame_annotations.jgz', frame 2 of 'first'.*{field}"):
            open_tree(tree)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (FRAMES, {"apple": []}, "frame_annotations.jgz' must be a list of records, as CO3Dv2 has it"),
            (FRAMES, [{"frame_number": 0}], "frame_annotations.jgz' has no field 'sequence_name'"),
            (FRAMES, [{"sequence_name": "first"}], "frame_annotations.jgz' has no field 'frame_number'"),
            (FRAMES, [{"sequence_name": "first", "frame_number": "0"}], "must be an integer, got '0'"),
            (FRAMES, [4], "frame_annotations.jgz' has no field 'sequence_name'"),
            (SEQUENCES, [{"sequence_name": "first"}], "'first' has no field 'viewpoint_quality_score'"),
            (SEQUENCES, {}, "sequence_annotations.jgz' must be a list of records"),
            (
                SEQUENCES,
                [{"sequence_name": "first", "viewpoint_quality_score": "good"}],
                "sequence 'first': 'viewpoint_quality_score' must be a number",
            ),
            (SET_LIST, {"train": []}, "manyview_dev_0.json': 'train' must be a list of at least one frame"),
            (SET_LIST, {"test": []}, "manyview_dev_0.json' has no field 'train'"),
            (SET_LIST, {"train": [["first", "0", "x"]]}, r"'train\[0\]' must be sequence_name, frame_number"),
            (SET_LIST, [], "manyview_dev_0.json' has no field 'train'"),
            (
                "../category_to_subset_name_list.json",
                ["apple"],
                "must map each category to a list of its sub",
            ),
        ],
    )
    def test_files_of_another_shape(self, tree: Path, name: str, content: object, message: str) -> None:
        write_json(tree / "apple" / name, content)
        with pytest.raises(InputError, match=message):
            open_tree(tree)

    @pytest.mark.parametrize("name", [FRAMES, SEQUENCES, SET_LIST, "../category_to_subset_name_list.json"])
    def test_cut_off_and_missing(self, tree: Path, name: str) -> None:
        path = tree / "apple" / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=f"cannot read .*{path.name}"):
            open_tree(tree)
        path.write_bytes(b"\x1f\x8b\x08" + bytes(20) if name.endswith("jgz") else b"\xff\xfe")
        with pytest.raises(InputError, match=f"cannot read .*{path.name}"):
            open_tree(tree)
        path.unlink()
        with pytest.raises(InputError, match=path.name):
            open_tree(tree)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def repaint(dtype: type, size: tuple[int, int] = (40, 60)) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(np.ones(size, dtype)).save(path)


class TestPixels:
    """Frame 2 of sequence "first" is stored in files of number 4."""

    @pytest.mark.parametrize(
        ("name", "damage", "message"),
        [
            ("images/frame000004.jpg", cut, "cannot read photo"),
            ("images/frame000004.jpg", Path.unlink, "cannot read photo"),
            (
                "images/frame000004.jpg",
                repaint(np.uint8, (39, 60)),
                "60 x 39 pixels, but 'image.size' of its",
            ),
            ("depths/frame000004.jpg.geometric.png", cut, "cannot read depth map"),
            ("depths/frame000004.jpg.geometric.png", Path.unlink, "cannot read depth map"),
            ("depths/frame000004.jpg.geometric.png", repaint(np.uint8), "16 bits per pixel, got uint8"),
            ("depths/frame000004.jpg.geometric.png", repaint(np.uint16, (40, 61)), "has 61 x 40 pixels"),
            ("depth_masks/frame000004.png", cut, "cannot read mask"),
            ("depth_masks/frame000004.png", repaint(np.uint8, (20, 30)), "has 30 x 20 pixels"),
        ],
    )
    def test_damaged(self, tree: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
        damage(tree / "apple/first" / name)
        dataset = open_tree(tree)
        with pytest.raises(InputError, match=message) as caught:
            dataset.read_view("apple/first", "000002")
        assert str(tree / "apple/first" / name) in str(caught.value)
        with pytest.raises(InputError, match=message):
            dataset.load("apple/first", None, seed=0)

    def test_without_a_depth_mask_the_object_mask_counts(self, tree: Path) -> None:
        known = open_tree(tree).read_view("apple/first", "000002").depth
        change_frame(tree, 2, put("depth.mask_path", None))
        by_object = open_tree(tree).read_view("apple/first", "000002").depth
        assert ((by_object > 0) == (known > 0)).mean() > 0.99  # the fixture's depth mask is its object's
        whole = open_tree(tree, with_background=True).read_view("apple/first", "000002").depth
        assert (by_object > 0).sum() < (whole > 0).sum()

    def test_without_any_mask_there_is_no_trusted_depth(self, tree: Path) -> None:
        change_frame(tree, 2, put("depth.mask_path", None))
        change_frame(tree, 2, put("mask", None))
        assert open_tree(tree).read_view("apple/first", "000002").depth is None
        assert (open_tree(tree, with_background=True).read_view("apple/first", "000002").depth > 0).any()

    def test_missing_cloud(self, tree: Path) -> None:
        (tree / "apple/first/pointcloud.ply").unlink()
        with pytest.raises(InputError, match=r"cannot read point cloud .*apple/first/pointcloud.ply"):
            open_tree(tree, with_cloud=True).load("apple/first", 1, 0)


class TestOtherTrees:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("apple/set_lists.json", "holds CO3D version 1; give the root of the official CO3Dv2"),
            ("apple_train.jgz", "holds VGGT's own annotations of CO3D"),
            ("apple_test.jgz", "holds VGGT's own annotations of CO3D"),
            ("apple/110_1/images/frame000001.npz", "holds CO3D as preprocessed by DUSt3R"),
            ("notes.txt", "has no category_to_subset_name_list.json"),
        ],
    )
    def test_refused_by_name(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        with pytest.raises(InputError, match=message):
            open_tree(tmp_path)

    def test_preprocessed_in_place(self, tree: Path) -> None:
        """DUSt3R's depth maps have CO3D's names and would decode to plausible nonsense."""
        (tree / "apple/first/images/frame000004.npz").touch()
        with pytest.raises(InputError, match=r"frame000004.npz' shows that this tree was made by DUSt3R"):
            open_tree(tree).read_view("apple/first", "000002")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"there is no folder .*nowhere'; give the root of CO3Dv2"):
            open_tree(tmp_path / "nowhere")
