"""Records of scenes: exact, whole or recomputed, and never of another run."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny_native_vggt

from hess_plugin.calibration.records import RecordFolder, SceneRecord, check_out, record_folders
from hess_plugin.errors import InputError
from hess_plugin.loading import fingerprint

RUN = {
    "scene_ids": ["apple/1_2", "bench/3", "ünï"],
    "config": {"num_views": 20, "icp": True},
    "model": "f" * 64,
}


def record_of(scene_id: str, **more: Any) -> SceneRecord:
    generator = torch.Generator().manual_seed(len(scene_id))
    traces = {
        name: torch.rand(2, 3, dtype=torch.float64, generator=generator) for name in ("camera", "points")
    }
    made = SceneRecord(
        scene_id, 1.5, 2**33, view_ids=("7", "000012"), report={"camera_error": 0.1 + 0.2}, traces=traces
    )
    return replace(made, **more)


def failed(scene_id: str) -> SceneRecord:
    return SceneRecord(scene_id, 0.1, 0, failure="frame 7: file is cut short")


@pytest.fixture
def records(tmp_path: Path) -> RecordFolder:
    folder = RecordFolder(tmp_path, RUN)
    assert folder.open(keep_failed=False) == RUN["scene_ids"]
    return folder


def file_of(records: RecordFolder, index: int) -> Path:
    return records._file(RUN["scene_ids"][index])


def test_come_back_as_they_were(records: RecordFolder) -> None:
    first = [record_of("apple/1_2"), failed("bench/3"), record_of("ünï", traces={}, failure="why")]
    for number, record in enumerate(reversed(first), 1):
        records.write(record)
        assert records.count() == number
    for before, after in zip(first, records.read_all(), strict=True):
        assert replace(before, traces={}) == replace(after, traces={})
        assert before.traces.keys() == after.traces.keys()
        assert all(torch.equal(trace, after.traces[name]) for name, trace in before.traces.items())


def test_failed_scenes_are_tried_again_or_kept(records: RecordFolder) -> None:
    records.write(record_of("apple/1_2"))
    records.write(failed("bench/3"))
    assert records.open(keep_failed=True) == ["ünï"]
    assert records.count() == 2
    assert records.open(keep_failed=False) == ["bench/3", "ünï"]
    assert records.count() == 1  # the progress bar would count a scene that is still to come
    assert records.open(keep_failed=True) == ["bench/3", "ünï"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "empty": lambda content: b"",
    "text": lambda content: b"nonsense " * 9,
    "unknown field": lambda content: content.replace(b"seconds", b"minutes"),
    "other tensors": lambda content: content.replace(b'"points":{', b'"pixels":{'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_are_measured_again(
    records: RecordFolder, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    records.write(record_of("apple/1_2"))
    records.write(record_of("bench/3"))
    content = file_of(records, 1).read_bytes()
    assert DAMAGES[damage](content) != content
    file_of(records, 1).write_bytes(DAMAGES[damage](content))
    with caplog.at_level(logging.WARNING):
        assert records.open(keep_failed=True) == ["bench/3", "ünï"]
    assert "is damaged" in caplog.text
    assert "scene bench/3 is measured again" in caplog.text
    assert records.count() == 1


def test_a_killed_write_leaves_nothing_that_counts(
    records: RecordFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.write(record_of("apple/1_2"))
    assert records.count() == 0
    (records.path / f".{file_of(records, 0).name}.4711").write_bytes(b"half")  # SIGKILL leaves it
    monkeypatch.undo()
    assert records.open(keep_failed=True) == RUN["scene_ids"]
    assert records.count() == 0


def test_missing_records_are_an_error(records: RecordFolder) -> None:
    records.write(record_of("apple/1_2"))
    with pytest.raises(InputError, match=r"lacks the records of 2 scenes, bench/3 among them.*same disk"):
        records.read_all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"num_views": 12, "icp": True}}, r"differs in config\.num_views \(20, now 12\);"),
        (
            {"config": {"num_views": 20, "icp": False}, "model": "e" * 64},
            r"config\.icp \(True, now False\), model;",
        ),
        ({"model": "x" * 200}, "differs in model; resume it as it was started, or"),
        ({"precision": "bfloat16"}, r"differs in precision \(None, now 'bfloat16'\)"),
    ],
)
def test_runs_are_not_mixed(records: RecordFolder, change: dict[str, Any], named: str) -> None:
    other = RecordFolder(records.out, RUN | change)
    assert other.path != records.path
    assert other.open(keep_failed=False) == other.scene_ids  # nothing was measured yet, so nothing is mixed
    shutil.rmtree(other.path)
    records.write(record_of("apple/1_2"))
    with pytest.raises(InputError, match=named):
        other.open(keep_failed=False)
    assert not other.path.exists()
    (records.path / "run.json").write_text("{")
    with pytest.raises(InputError, match="differs in what cannot be read from it"):
        other.open(keep_failed=False)
    assert records.open(keep_failed=False) == ["bench/3", "ünï"]


def test_runs_with_other_scenes_share_records(records: RecordFolder) -> None:
    """Also when scenes come in between, so that rows change."""
    records.write(record_of("apple/1_2"))
    records.write(failed("bench/3"))
    records.write(record_of("ünï"))
    records.close()
    more = RecordFolder(records.out, RUN | {"scene_ids": ["apple/1_1", "apple/1_2", "bench/3", "b" * 300]})
    assert more.open(keep_failed=True) == ["apple/1_1", "b" * 300]
    assert more.count() == 2  # the third is no scene of this run
    for scene_id in ("apple/1_1", "b" * 300):
        more.write(record_of(scene_id))
    assert [record.scene_id for record in more.read_all()] == more.scene_ids
    assert more.read_all()[2].failure == failed("bench/3").failure
    assert records.open(keep_failed=False) == ["bench/3"]


def test_the_order_of_settings_does_not_matter(tmp_path: Path) -> None:
    turned = json.loads(json.dumps(RUN, sort_keys=True))
    assert list(turned) != list(RUN)
    assert RecordFolder(tmp_path, turned).path == RecordFolder(tmp_path, RUN).path


class TestCheckOut:
    def test_makes_the_folder(self, tmp_path: Path) -> None:
        assert check_out(tmp_path / "a" / "b", resume=False)
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_scores_are_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "hess_config.json").write_text("{}")
        for resume in (False, True):
            with pytest.raises(InputError, match="holds scores already"):
                check_out(tmp_path, resume)

    def test_scores_with_records_are_replaced_when_resumed(self, records: RecordFolder) -> None:
        (records.out / "hess_config.json").write_text("{}")
        with pytest.raises(InputError, match="holds scores already"):  # no scene has a record
            check_out(records.out, resume=True)
        records.write(record_of("ünï"))
        assert check_out(records.out, resume=True)
        with pytest.raises(InputError, match=r"holds scores already.*, or measure more .* --resume"):
            check_out(records.out, resume=False)

    def test_records_are_not_lost(self, records: RecordFolder) -> None:
        assert check_out(records.out, resume=False)  # stopped before the first scene
        records.write(failed("ünï"))
        assert record_folders(records.out) == [records.path]
        with pytest.raises(
            InputError, match=r"holds records .*; continue it with --resume, or remove .*\.calibration-"
        ):
            check_out(records.out, resume=False)
        assert check_out(records.out, resume=True)
        shutil.rmtree(records.path)
        assert check_out(records.out, resume=False)

    def test_not_writable(self) -> None:
        with pytest.raises(InputError, match="cannot write to /proc/nowhere"):
            check_out(Path("/proc/nowhere"), resume=False)


def test_fingerprint_is_of_every_weight() -> None:
    model = tiny_native_vggt()
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    assert fingerprint(copy.deepcopy(model).double()) != before
    for name in ("camera_head.pose_branch.fc2.bias", "aggregator.camera_token"):
        other = copy.deepcopy(model)
        parameter = other.get_parameter(name)
        parameter.data.view(-1)[-1] += 1e-6
        assert fingerprint(other) != before, name
