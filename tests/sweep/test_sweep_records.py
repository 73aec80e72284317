"""What a sweep has measured: kept when it stops or fails, never measured twice, extended."""

from __future__ import annotations

import gzip
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeping import SYNTHETIC, scene_records, sweep

from hess_plugin.cli import main
from hess_plugin.errors import InputError
from hess_plugin.sweep import command, measuring
from hess_plugin.sweep import records as records_module
from hess_plugin.sweep.records import SettingRecord, SweepFolder


def test_nothing_is_measured_twice(
    model: Path, swept: SweepFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in swept.path.rglob("*.json*")}

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "predict", refuse)
        sweep(model, swept.path, *SYNTHETIC)
    after = {path: path.read_bytes() for path in swept.path.rglob("*.json*")}
    assert after == before


def test_other_views_are_measured_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views are no part of a scene's name, and records of others say nothing about these."""
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "hess"]
    before = sweep(model, tmp_path, *one).read("synthetic-10006")
    predict, calls = measuring.predict, []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args[1].view_ids)
        return predict(*args, **more)

    load = command.load_views
    monkeypatch.setattr(measuring, "predict", counted)
    monkeypatch.setattr(
        command, "load_views", lambda *args: replace(load(*args), view_ids=("d", "c", "b", "a"))
    )
    after = sweep(model, tmp_path, *one).read("synthetic-10006")
    assert len(calls) >= len(after) == len(before)
    assert all(record.asked["views"] == ["d", "c", "b", "a"] for record in after.values())


def test_unreadable_scene_keeps_its_records(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "hess"]
    before = sweep(model, tmp_path, *one).read("synthetic-10006")

    def unreadable(*_: object) -> None:
        raise InputError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(command, "load_views", unreadable)
        options = ["sweep", "--model", str(model), "--out", str(tmp_path), "--preset", "small", *one]
        assert main(options) == 2
    assert "1 measurements failed" in capsys.readouterr().err
    failed = SweepFolder(tmp_path).read("synthetic-10006")
    assert failed.pop("failed").failure == "the disk is away"
    assert failed == before
    assert sweep(model, tmp_path, *one).read("synthetic-10006") == before


def test_failures_of_other_settings_are_not_this_runs(model: Path, tmp_path: Path) -> None:
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "hess"]
    folder = sweep(model, tmp_path, *one)
    records = folder.read("synthetic-10006")
    folder.write("synthetic-10006", records | {"key @ 0.8/0.4": SettingRecord({}, failure="NaN")})
    sweep(model, tmp_path, *one)


def test_stopped_and_resumed(
    model: Path, swept: SweepFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    predict, calls = measuring.predict, 0

    def interrupted(*args: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt
        return predict(*args, **more)

    options = ["sweep", "--model", str(model), "--out", str(tmp_path), "--preset", "small", *SYNTHETIC]
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "predict", interrupted)
        assert main(options) == 130
    partly = [len(records) for records in scene_records(SweepFolder(tmp_path)).values()]
    assert partly[0] > partly[-1] == 0
    resumed = scene_records(sweep(model, tmp_path, *SYNTHETIC))
    for scene_id, records in scene_records(swept).items():
        for key, record in records.items():
            assert resumed[scene_id][key].density == record.density
            assert resumed[scene_id][key].metrics == pytest.approx(record.metrics, rel=1e-4, nan_ok=True)


def test_methods_and_scenes_are_added(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sweep(model, tmp_path, *SYNTHETIC, "--methods", "reverse")
    assert (
        "left out: hess, key, kwon, lambda-0, merging, michel, no-capping, scenes-5, shuffled, uniform-public"
        in capsys.readouterr().out
    )
    assert len(first.read("synthetic-10006")) == 6
    more = ["4" if option == "3" else option for option in SYNTHETIC]
    second = scene_records(sweep(model, tmp_path, *more, "--methods", "shuffled"))
    assert [len(records) for records in second.values()] == [8, 8, 8, 6]


class TestFolder:
    def test_round_trip_keeps_nan(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        record = SettingRecord({"dense": True}, metrics={"ate": math.nan, "auc_30": 0.5}, seconds=1.5)
        folder.write("apple/1", {"dense": record})
        read = folder.read("apple/1")["dense"]
        assert math.isnan(read.metrics["ate"])
        assert replace(read, metrics={}) == replace(record, metrics={})
        assert b"NaN" not in gzip.decompress((tmp_path / "records/apple/1.json.gz").read_bytes())

    def test_damaged_records_count_as_not_measured(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        assert folder.read("s") == {}
        folder.write("s", {"dense": SettingRecord({"dense": True})})
        path = tmp_path / "records/s.json.gz"
        whole = path.read_bytes()
        for damaged in (
            whole[:-5],
            whole[:15] + b"\xff" + whole[16:],
            b"{}",
            gzip.compress(b'{"dense": {"a": 1}}'),
        ):
            path.write_bytes(damaged)
            assert folder.read("s") == {}

    def test_no_time_in_the_bytes(self, tmp_path: Path) -> None:
        SweepFolder(tmp_path).write("s", {"dense": SettingRecord({"dense": True})})
        assert (tmp_path / "records/s.json.gz").read_bytes()[4:8] == bytes(4)

    @pytest.mark.parametrize(("every", "while_open"), [(0.0, ["dense"]), (60.0, [])])
    def test_kept_now_and_then_and_at_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, while_open: list[str]
    ) -> None:
        monkeypatch.setattr(records_module, "WRITE_EVERY", every)
        folder = SweepFolder(tmp_path)
        with suppress(KeyboardInterrupt), folder.kept("s", {}) as keep:
            keep("dense", SettingRecord({"dense": True}))
            assert list(folder.read("s")) == while_open
            raise KeyboardInterrupt
        assert list(folder.read("s")) == ["dense"]

    def test_another_sweep_is_refused(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        with pytest.raises(InputError, match="holds no records of a sweep"):
            folder.read_run()
        run = {"format": 1, "commands": ["a"], "seed": 0, "scenes": {}, "settings": []}
        folder.begin(run)
        folder.begin(run | {"scenes": {"a": None}})
        with pytest.raises(InputError, match="of another run, which differs in seed; choose another --out"):
            folder.begin(run | {"seed": 1})
        (tmp_path / "sweep.json").write_text(json.dumps({"format": 2}))
        with pytest.raises(InputError, match="its format is 2"):
            folder.read_run()

    def test_extended_by_settings_and_scenes(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        dense, hess = {"key": "dense", "level": None}, {"key": "hess @ 0.8/0.4", "level": {}}
        folder.begin({"format": 1, "commands": ["a"], "scenes": {"a": ["1", "2"]}, "settings": [dense]})
        folder.begin({"format": 1, "commands": ["a"], "scenes": {"b": ["3", "4"]}, "settings": [dense, hess]})
        folder.begin({"format": 1, "commands": ["a"], "scenes": {"a": ["1", "2"]}, "settings": [dense]})
        run = folder.read_run()
        assert run["scenes"] == {"a": ["1", "2"], "b": ["3", "4"]}
        assert run["settings"] == [dense, hess]

    def test_extended_without_gates_keeps_what_was_said_of_them(self, tmp_path: Path) -> None:
        folder, run = SweepFolder(tmp_path), {"format": 1, "scenes": {}, "settings": []}
        folder.begin(run | {"commands": ["hess sweep --gates g"], "gates": "abc", "other_scores": None})
        for _ in range(2):
            folder.begin(run | {"commands": ["hess sweep"], "gates": None, "other_scores": {"sha256": "d"}})
        assert folder.read_run()["commands"] == ["hess sweep --gates g", "hess sweep"]
        assert folder.read_run()["gates"] == "abc"
        assert folder.read_run()["other_scores"] == {"sha256": "d"}

    def test_other_views_are_refused(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        folder.begin({"format": 1, "commands": ["a"], "scenes": {"a": ["1", "2"]}, "settings": []})
        with pytest.raises(InputError, match="other views of a"):
            folder.begin({"format": 1, "commands": ["a"], "scenes": {"a": ["2", "1"]}, "settings": []})
        assert folder.read_run()["scenes"] == {"a": ["1", "2"]}
