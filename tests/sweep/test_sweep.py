"""`hess sweep` from end to end on a tiny model: equal densities, nothing measured twice, any dataset."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from co3d_tree import write_traps
from doubles import tiny_native_vggt
from dtu_tree import views_in_mm, write_pointmap
from ranks import run_ranks

from hess_plugin.cli import main
from hess_plugin.errors import InputError
from hess_plugin.gates import GATES_FILE, HeadGates
from hess_plugin.scores import HeadScores, ScoresInfo
from hess_plugin.sweep import command, measuring
from hess_plugin.sweep.records import SettingRecord, SweepFolder

BASE = ["--device", "cpu", "--base", "q_block_size=4,kv_block_size=2"]
SYNTHETIC = ["--dataset", "synthetic", "--num-scenes", "3", "--num-views", "4", *BASE]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native model with random scores of six scenes in W_Q and W_K."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    native = tiny_native_vggt()
    native.save_pretrained(folder)
    config, ids = native.config, tuple(f"synthetic-{10_000 + k}" for k in range(6))
    info = ScoresInfo(
        backbone="vggt", num_layers=config.depth, num_heads=config.num_heads, projections=("query", "key"),
        head_dim=config.embed_dim // config.num_heads, dataset="synthetic", scene_ids=ids,
        view_ids=(("0", "1", "2"),) * 6, num_views=3, seed=0, camera_weight=0.5,
    )  # fmt: skip
    names = ("camera", "points", "camera.key", "points.key")
    traces = {name: torch.rand(6, config.depth, config.num_heads).double() ** 3 for name in names}
    HeadScores(traces, info).save(folder / "hess" / "synthetic")
    gates = {name: torch.randn(6, config.depth, config.num_heads).double() for name in ("camera", "points")}
    HeadGates(gates, info).save(folder / "hess" / "synthetic")
    return folder


def sweep(model: Path, out: Path, *options: str) -> SweepFolder:
    assert main(["sweep", "--model", str(model), "--out", str(out), "--preset", "small", *options]) == 0
    return SweepFolder(out)


def scene_records(folder: SweepFolder) -> dict[str, dict[str, SettingRecord]]:
    return {scene_id: folder.read(scene_id) for scene_id in folder.read_run()["scenes"]}


@pytest.fixture(scope="module")
def swept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    return sweep(model, tmp_path_factory.mktemp("swept") / "out", *SYNTHETIC)


def test_every_setting_meets_the_baselines_density(swept: SweepFolder) -> None:
    run, records = swept.read_run(), scene_records(swept)
    assert list(records) == [
        "synthetic-10006",
        "synthetic-10007",
        "synthetic-10008",
    ]  # not those calibrated on
    keys = [setting["key"] for setting in run["settings"]]
    assert "key @ 0.8/0.4" in keys
    for of_scene in records.values():
        assert list(of_scene) == keys
        assert of_scene["dense"].density == 1
        assert of_scene["dense"].config is None
        for key, record in of_scene.items():
            assert record.failure is None
            assert 0 <= record.metrics["auc_30"] <= 1
            assert record.metrics["chamfer"] > 0
            if record.target is not None:
                level = key.partition(" @ ")[2]
                assert record.target == of_scene[f"uniform @ {level}"].density
                coarse = {"michel": 1 / 16, "kwon": 1 / 16, "merging": 1 / 60}  # whole heads, whole tokens
                allowed = coarse.get(key.partition(" @ ")[0], run["tolerance"])
                assert abs(record.density - record.target) <= allowed, key


def test_baselines_stand_beside_the_others(swept: SweepFolder) -> None:
    for of_scene in scene_records(swept).values():
        pruned, merged = of_scene["michel @ density 0.5"], of_scene["merging @ density 0.5"]
        assert pruned.config == {
            "rule": "michel", "kept_share": pruned.target, "camera_weight": None, "dense_layers": [],
        }  # fmt: skip
        assert pruned.asked["scores"] == swept.read_run()["gates"]
        assert (pruned.density * 8).is_integer()
        assert merged.config is not None
        assert 1 - merged.config["merged_share"] == pytest.approx(merged.target**0.5)
        for name in ("michel", "kwon", "merging"):
            record = of_scene[f"{name} @ density 0.5"]
            assert set(record.metrics) == set(of_scene["dense"].metrics)


def test_pruning_without_gates(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They lie beside the scores, or in a folder of their own, or these methods are left out."""
    scores, gates = tmp_path / "scores", tmp_path / "gates"
    HeadScores.load(model / "hess" / "synthetic").save(scores)
    one = ["1" if option == "3" else option for option in SYNTHETIC]
    one += ["--hess", str(scores), "--methods", "kwon"]
    sweep(model, tmp_path / "out", *one)
    assert "left out: hess, key, kwon," in capsys.readouterr().out
    HeadGates.load(model / "hess" / "synthetic").save(gates)
    added = sweep(model, tmp_path / "out", *one, "--gates", str(gates))
    assert "kwon @ density 0.25" in added.read("synthetic-10006")
    assert (tmp_path / "out/scores/own" / GATES_FILE).is_file()
    assert (
        main(["sweep", "--model", str(model), "--out", str(tmp_path / "b"), *one, "--gates", str(scores)])
        == 2
    )
    assert "measure it with hess calibrate --gates" in capsys.readouterr().err


def test_gates_of_other_scores_are_not_taken(model: Path, tmp_path: Path) -> None:
    """A model may hold several; only those beside the scores that a sweep uses belong to these."""
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    shutil.copytree(copy / "hess" / "synthetic", copy / "hess" / "other")
    (copy / "hess" / "other" / GATES_FILE).unlink()
    HeadScores.load(copy / "hess" / "other").save(copy)
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "michel"]
    assert sweep(copy, tmp_path / "root", *one).read_run()["gates"] is None
    assert sweep(copy, tmp_path / "a", *one, "--hess", "other").read_run()["gates"] is None
    assert sweep(copy, tmp_path / "b", *one, "--hess", "synthetic").read_run()["gates"] is not None


def test_scenes_of_the_gates_are_left_out(model: Path, tmp_path: Path) -> None:
    gates = HeadGates.load(model / "hess" / "synthetic")
    ids = tuple(f"synthetic-{10_006 + k}" for k in range(6))
    HeadGates(gates.gradients, replace(gates.info, scene_ids=ids)).save(tmp_path / "gates")
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "michel"]
    folder = sweep(model, tmp_path / "out", *one, "--gates", str(tmp_path / "gates"))
    assert list(folder.read_run()["scenes"]) == ["synthetic-10012"]


def test_auto_is_resolved_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging takes a number only, and records say which."""
    monkeypatch.setattr("hess_plugin.sweep.command.dense_below_tokens", lambda _: 5, raising=False)
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "hess,merging"]
    folder = sweep(model, tmp_path, *one, "--base", f"{SYNTHETIC[-1]},dense_below_tokens=auto")
    assert folder.read_run()["base"]["dense_below_tokens"] == 5
    records = folder.read("synthetic-10006")
    for key in ("hess @ density 0.5", "merging @ density 0.5"):
        assert records[key].config["dense_below_tokens"] == 5


def test_shuffling_differs_from_scene_to_scene(swept: SweepFolder) -> None:
    seeds = [r["shuffled @ density 0.5"].config["shuffle_seed"] for r in scene_records(swept).values()]
    assert len(set(seeds)) == 3


def test_nothing_is_measured_twice(
    model: Path, swept: SweepFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in swept.path.rglob("*.json")}

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "predict", refuse)
        sweep(model, swept.path, *SYNTHETIC)
    after = {path: path.read_bytes() for path in swept.path.rglob("*.json")}
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


def test_unmeasured_baseline_still_sets_the_density(
    model: Path,
    swept: SweepFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the others are matched to is the density of its pass, whatever its metrics."""
    measure = measuring.measure

    def refuse(protocol: Any, saved: Any, *rest: Any) -> Any:
        if 0.2 < saved[0].density < 0.3 and not refused:
            refused.append(saved[0].density)
            raise InputError("cameras in one place")
        return measure(protocol, saved, *rest)

    refused: list[float] = []
    monkeypatch.setattr(measuring, "measure", refuse)
    one = [*("1" if option == "3" else option for option in SYNTHETIC), "--methods", "hess"]
    assert main(["sweep", "--model", str(model), "--out", str(tmp_path), "--preset", "small", *one]) == 2
    assert "1 measurements failed" in capsys.readouterr().err
    records = SweepFolder(tmp_path).read("synthetic-10006")
    baseline, other = records["uniform @ density 0.25"], records["hess @ density 0.25"]
    assert baseline.failure == "cameras in one place"
    assert [baseline.density] == refused
    assert other.target == baseline.density


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


def test_scores_of_another_set(model: Path, tmp_path: Path) -> None:
    own = HeadScores.load(model / "hess" / "synthetic")
    info = replace(own.info, dataset="co3d")
    HeadScores({name: trace.flip(-1) for name, trace in own.scene_traces.items()}, info).save(
        tmp_path / "other"
    )
    options = ["--preset", "paper", "--methods", "swapped", "--other-hess", str(tmp_path / "other")]
    one = ["1" if option == "3" else option for option in SYNTHETIC]
    folder = sweep(model, tmp_path / "out", *one, *options)
    records = folder.read("synthetic-10006")
    assert records["swapped @ 0.8/0.4"].asked["scores"] == folder.read_run()["other_scores"]["sha256"]
    assert HeadScores.load(tmp_path / "out/scores/other").info.dataset == "co3d"


def test_co3d_and_dtu(model: Path, tmp_path: Path) -> None:
    write_traps(tmp_path / "co3d")
    options = ["--dataset", "co3d", "--root", str(tmp_path / "co3d"), "--num-views", "4", "--min-frames", "4"]
    co3d = sweep(model, tmp_path / "a", *options, *BASE, "--methods", "hess")
    assert co3d.read_run()["protocol"] == "co3d-vggt"
    record = co3d.read("apple/portrait")["hess @ density 0.25"]
    assert set(record.metrics) > {"auc_30", "rra_5", "ate", "rpe_rotation"}
    write_pointmap(tmp_path / "dtu", views_in_mm(6, 2))
    options = ["--dataset", "dtu", "--root", str(tmp_path / "dtu"), "--num-views", "2", "--image-width", "32"]
    dtu = sweep(model, tmp_path / "b", *options, *BASE, "--methods", "hess")
    assert set(dtu.read("scan1")["hess @ 0.8/0.4"].metrics) > {
        "accuracy",
        "completeness",
        "normal_consistency",
    }


def test_two_processes(model: Path, swept: SweepFolder, tmp_path: Path) -> None:
    options = ["--model", str(model), "--out", str(tmp_path), "--preset", "small", *SYNTHETIC]
    first, second = run_ranks(2, "sweep", *options)
    assert "3 scenes of synthetic x 22 settings, 2 processes (cpu)" in first
    assert second == ""
    for scene_id, records in scene_records(SweepFolder(tmp_path)).items():
        alone = swept.read(scene_id)
        assert list(records) == list(alone)
        for key, record in records.items():
            assert record.density == pytest.approx(alone[key].density, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "big"], "unknown preset 'big'"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--base", "sparse_ratio=0.5"], "--base takes q_block_size, kv_block_size"),
        (["--hess", "./none"], "./none"),
        (["--num-scenes", "0"], "--num-scenes must be at least 1"),
    ],
)
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["sweep", "--dataset", "synthetic", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


class TestFolder:
    def test_round_trip_keeps_nan(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        record = SettingRecord({"dense": True}, metrics={"ate": math.nan, "auc_30": 0.5}, seconds=1.5)
        folder.write("apple/1", {"dense": record})
        read = folder.read("apple/1")["dense"]
        assert math.isnan(read.metrics["ate"])
        assert replace(read, metrics={}) == replace(record, metrics={})
        assert "NaN" not in (tmp_path / "records/apple/1.json").read_text()

    def test_damaged_records_count_as_not_measured(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        assert folder.read("s") == {}
        folder.write("s", {"dense": SettingRecord({"dense": True})})
        path = tmp_path / "records/s.json"
        path.write_text(path.read_text()[:-5])
        assert folder.read("s") == {}

    def test_another_sweep_is_refused(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        with pytest.raises(InputError, match="holds no records of a sweep"):
            folder.read_run()
        run = {"format": 1, "seed": 0, "scenes": {}, "settings": []}
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
        folder.begin({"format": 1, "scenes": {"a": ["1", "2"]}, "settings": [dense]})
        folder.begin({"format": 1, "scenes": {"b": ["3", "4"]}, "settings": [dense, hess]})
        folder.begin({"format": 1, "scenes": {"a": ["1", "2"]}, "settings": [dense]})
        run = folder.read_run()
        assert run["scenes"] == {"a": ["1", "2"], "b": ["3", "4"]}
        assert run["settings"] == [dense, hess]

    def test_other_views_are_refused(self, tmp_path: Path) -> None:
        folder = SweepFolder(tmp_path)
        folder.begin({"format": 1, "scenes": {"a": ["1", "2"]}, "settings": []})
        with pytest.raises(InputError, match="other views of a"):
            folder.begin({"format": 1, "scenes": {"a": ["2", "1"]}, "settings": []})
        assert folder.read_run()["scenes"] == {"a": ["1", "2"]}
