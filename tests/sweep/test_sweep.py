"""`hess sweep` from end to end on a tiny model: equal densities, the right scores and gates, any dataset."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from co3d_tree import write_traps
from dtu_tree import views_in_mm, write_pointmap
from ranks import run_ranks
from sweeping import BASE, SYNTHETIC, scene_records, sweep

from hess_plugin.cli import main
from hess_plugin.errors import InputError
from hess_plugin.gates import GATES_FILE, HeadGates
from hess_plugin.scores import HeadScores
from hess_plugin.sweep import measuring
from hess_plugin.sweep.records import SweepFolder


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
            assert record.seconds is None  # two processes on one CPU
            assert alone[key].seconds > 0


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
