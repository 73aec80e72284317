"""Frames of the pose protocols: drawn as VGGT's script draws, or read from a file as π³'s."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from co3d_tree import write_json, write_traps

from hess_plugin.datasets.co3d_protocols import SEEN, listed_views, vggt_views
from hess_plugin.errors import InputError


def write_tree(
    root: Path, lengths: dict[str, dict[str, int]], bad: str = ""
) -> dict[str, dict[str, list[int]]]:
    """Annotations alone, no photos; frame numbers in the set lists are shuffled. Returns these lists."""
    table, shuffle = {}, random.Random(7)
    lists: dict[str, dict[str, list[int]]] = {}
    for category, sequences in lengths.items():
        lists[category] = {}
        frames, entries, records = [], [], []
        for name, count in sequences.items():
            numbers = [3 * k for k in range(count)]
            shuffle.shuffle(numbers)
            lists[category][name] = numbers
            for number in numbers:
                translation = [9e4, 9e4, 0.0] if (name, number) == (bad, 0) else [1.0, 2.0, 3.0]
                viewpoint = {"T": translation}
                frames.append({"sequence_name": name, "frame_number": number, "viewpoint": viewpoint})
                entries.append([name, number, "path"])
            quality = 0.3 if name.startswith("low") else None if name.startswith("null") else 0.9
            records.append({"sequence_name": name, "viewpoint_quality_score": quality, "point_cloud": None})
        folder = root / category
        write_json(folder / "frame_annotations.jgz", frames[::-1])
        write_json(folder / "sequence_annotations.jgz", records)
        write_json(folder / "set_lists/set_lists_fewview_dev.json", {"train": [], "val": [], "test": entries})
        table[category] = ["fewview_dev"]
    write_json(root / "category_to_subset_name_list.json", table)
    return lists


def as_the_script_does(
    lists: dict[str, dict[str, list[int]]], categories: list[str], fast: bool, bad: str = ""
) -> dict[str, list[str]]:
    """The protocol in words of its own: global generators, seeded once."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    views = {}
    for category in categories:
        names = sorted(n for n in lists[category] if not n.startswith(("low", "null")))
        if fast and len(names) >= 10:
            names = sorted(random.sample(names, 10))
        for name in names:
            numbers = lists[category][name]
            if len(numbers) < 50 or name == bad:
                continue
            ids = np.random.choice(len(numbers), 10, replace=False)  # noqa: NPY002
            views[f"{category}/{name}"] = [f"{numbers[i]:06d}" for i in ids]
    return views


@pytest.mark.parametrize("fast", [False, True])
def test_draws_are_those_of_the_script(tmp_path: Path, fast: bool) -> None:
    many = {f"s{k:02d}": 50 + k for k in range(13)}
    lengths = {
        "vase": many,
        "apple": {"b": 60, "a": 50, "short": 49, "low": 70, "null": 80, "far": 55},
        "ball": {"unseen": 90},
    }
    lists = write_tree(tmp_path, lengths, bad="far")
    expected = as_the_script_does(lists, ["apple", "vase"], fast, bad="far")
    views = vggt_views(tmp_path, None, fast=fast)
    assert views == expected
    assert list(views) == list(expected)
    assert len(views) == (12 if fast else 15)
    assert vggt_views(tmp_path, ["ball"]) == as_the_script_does(lists, ["ball"], fast)


def test_numbers_of_the_protocol(tmp_path: Path) -> None:
    lists = write_tree(tmp_path, {"apple": {"a": 6, "b": 4}})
    with pytest.raises(InputError, match="fits the protocol"):
        vggt_views(tmp_path, None)
    views = vggt_views(tmp_path, None, num_views=3, min_frames=5)
    assert list(views) == ["apple/a"]
    assert set(views["apple/a"]) < {f"{number:06d}" for number in lists["apple"]["a"]}
    assert len(SEEN) == 41


def test_traps(tmp_path: Path) -> None:
    write_traps(tmp_path)
    views = vggt_views(tmp_path, None, num_views=3, min_frames=3)
    assert list(views) == ["apple/portrait", "chair/scaled"]


def test_listed_positions_are_in_file_order(tmp_path: Path) -> None:
    lists = write_tree(tmp_path, {"apple": {"a": 9, "b": 7}, "ball": {"c": 8}})
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"c": [5, 0], "a": [8, 3, 1]}))
    assert listed_views(tmp_path, path, None) == {
        "apple/a": [f"{lists['apple']['a'][k]:06d}" for k in (8, 3, 1)],
        "ball/c": [f"{lists['ball']['c'][k]:06d}" for k in (5, 0)],
    }
    assert list(listed_views(tmp_path, path, ["ball"])) == ["ball/c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must map each sequence to positions"),
        ({"a": [9]}, "positions from 0 to 8 in its set list"),
        ({"a": []}, "positions from 0 to 8"),
        ({"a": [0], "z": [0]}, "names 'z', which no fewview_dev:test list"),
        ({}, "no sequence of fewview_dev:test"),
    ],
)
def test_bad_lists(tmp_path: Path, content: object, message: str) -> None:
    write_tree(tmp_path, {"apple": {"a": 9}})
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        listed_views(tmp_path, path, None)
