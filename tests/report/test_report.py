"""`hess report` on records that are written by hand, so that what tables must say is known."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_scores import make_scores

from hess_plugin.card import card_files
from hess_plugin.cli import main
from hess_plugin.evaluation.measurements import read_measurements
from hess_plugin.report.claims import claims
from hess_plugin.report.command import _section
from hess_plugin.report.results import Sweep
from hess_plugin.report.tables import ablation, accelerations, all_settings, full_results, runtime
from hess_plugin.sweep.methods import Level
from hess_plugin.sweep.records import SettingRecord, SweepFolder

PAIRS = (Level(0.5, 0.9), Level(0.8, 0.4))
RATIO = (Level(0.5), Level(0.75))
METRICS = {"auc_30": 0.5, "ate": 0.1, "chamfer": 0.2, "accuracy": 0.25, "completeness": 0.15}
# What each method adds to AUC@30 of the baseline, and takes from its distances.
GAINS = {"uniform": 0.0, "hess": 0.2, "reverse": -0.3, "shuffled": -0.1, "key": 0.1, "log": -0.05}


def write_sweep(root: Path, protocol: str = "scene", scenes: int = 14, **changes: Any) -> Path:
    """Records of every method of GAINS at every level; scenes differ in difficulty, not in gains."""
    names = [f"{'apple' if k < 10 else 'bench'}/{k}" for k in range(scenes)]
    run = {
        "format": 1, "commands": ["hess sweep --preset paper"], "protocol": protocol, "about": "as told",
        "model": {"name": "tiny", "revision": None, "family": "vggt", "sha256": "0" * 64},
        "dataset": "synthetic", "num_views": 4, "seed": 0, "tolerance": 0.005, "alignment": None,
        "base": {"backend": "auto"}, "device": "cpu", "precision": "float32", "versions": {"torch": "2"},
        "scenes": dict.fromkeys(names),
        "settings": [
            {"level": None, "key": "dense"},
            *({"level": vars(level), "key": f"hess @ {level.name}"} for level in (*PAIRS, *RATIO)),
        ],
    }  # fmt: skip
    folder = SweepFolder(root)
    folder.begin(run | changes)
    make_scores(scene_ids=tuple("abcdef"), view_ids=(("1", "2", "3", "4"),) * 6).save(root / "scores" / "own")
    for index, name in enumerate(names):
        folder.write(name, _records(index))
    return root


def _records(index: int) -> dict[str, SettingRecord]:
    records = {"dense": SettingRecord({}, None, 1.0, seconds=2.0, metrics=_metrics(index, 0.4))}
    for level in (*PAIRS, *RATIO):
        density = 1 - level.sparse_ratio + level.cdf_threshold / 10
        for method, gain in GAINS.items():
            measured = density if method == "uniform" else density + 0.001
            target = None if method == "uniform" else density
            metrics = _metrics(index, gain + density / 10)
            record = SettingRecord({}, {}, measured, target, seconds=1.0, metrics=metrics)
            records[f"{method} @ {level.name}"] = record
    return records


def _metrics(index: int, gain: float) -> dict[str, float]:
    ease = 0.01 * index
    return {k: v + ease + (gain if k == "auc_30" else -gain / 10) for k, v in METRICS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "toy")


@pytest.fixture(scope="module")
def sweep(folder: Path) -> Sweep:
    return Sweep.read(folder)


def rows_of(table: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line
    ]


def test_claims_count_levels(sweep: Sweep) -> None:
    """HeSS gains 0.2 AUC@30 over uniform and 0.02 in distances at all four levels, and more over the rest."""
    rows = {row[0]: row[1:] for row in rows_of(claims(sweep) or "")[2:]}
    assert list(rows) == ["uniform (SparseVGGT)", "reverse HeSS", "W_K", "log", "shuffled HeSS"]
    assert rows["uniform (SparseVGGT)"] == [
        "Fig. 6, Tables S1 and S2", "4", "**4** / 0 / 0 (+0.2000)", *["**4** / 0 / 0 (-0.0200)"] * 4
    ]  # fmt: skip
    assert rows["reverse HeSS"][2] == "**4** / 0 / 0 (+0.5000)"


def test_claims_that_fail_are_counted_as_such(tmp_path: Path) -> None:
    folder = SweepFolder(write_sweep(tmp_path / "toy"))
    for scene_id in folder.read_run()["scenes"]:
        records = folder.read(scene_id)
        swap = {
            "hess @ 0.8/0.4": records["reverse @ 0.8/0.4"],
            "reverse @ 0.8/0.4": records["hess @ 0.8/0.4"],
        }
        swap["reverse @ 0.5/0.9"] = records["hess @ 0.5/0.9"]
        folder.write(scene_id, records | swap)
    rows = {row[0]: row[1:] for row in rows_of(claims(Sweep.read(folder.path)) or "")[2:]}
    assert rows["reverse HeSS"][2] == "**2** / 1 / 1 (+0.1250)"


def test_accelerations_stand_in_one_table(tmp_path: Path) -> None:
    folder = SweepFolder(write_sweep(tmp_path / "toy", scenes=2))
    for scene_id in folder.read_run()["scenes"]:
        records = folder.read(scene_id)
        merging = replace(records["hess @ density 0.5"], seconds=0.25, peak_memory=2**30)
        folder.write(scene_id, records | {"merging @ density 0.5": merging})
    rows = rows_of(accelerations(Sweep.read(folder.path)) or "")[2:]
    assert [row[:2] for row in rows] == [
        ["", "dense"],
        ["density 0.5", "uniform (SparseVGGT)"],
        ["density 0.5", "HeSS"],
        ["density 0.5", "token merging (FastVGGT)"],
    ]
    assert rows[0][2:4] == ["1.0000", "0.9050"]
    assert rows[0][-2:] == ["2.000 (2.000 to 2.000)", "n/a"]
    assert rows[3][-2:] == ["0.250 (0.250 to 0.250)", "1.00"]


def test_seconds_of_a_shared_device_are_not_shown(tmp_path: Path) -> None:
    folder = SweepFolder(write_sweep(tmp_path / "toy", scenes=2))
    for scene_id in folder.read_run()["scenes"]:
        untimed = {key: replace(record, seconds=None) for key, record in folder.read(scene_id).items()}
        folder.write(scene_id, untimed | {"merging @ density 0.5": untimed["hess @ density 0.5"]})
    sweep = Sweep.read(folder.path)
    assert runtime(sweep) is None
    assert accelerations(sweep) is None
    assert "Seconds were not kept" in _section(sweep, [])


def test_levels_go_from_dense_to_sparse(sweep: Sweep) -> None:
    assert [level.name for level in sweep.levels] == ["0.5/0.9", "density 0.5", "density 0.25", "0.8/0.4"]
    assert sweep.density("hess", PAIRS[1]) == pytest.approx(0.241)


def test_differences_are_paired(sweep: Sweep) -> None:
    """Scenes differ more than methods, but on each the difference is the same: the interval has no width."""
    cell = sweep.cell("hess", PAIRS[0], sweep.metrics[0])
    assert cell is not None
    assert cell.difference.mean == pytest.approx(0.2)
    assert cell.difference.high - cell.difference.low < 1e-9  # rounding
    assert cell.value.high - cell.value.low > 0.01
    assert (cell.p, cell.num_scenes) == (pytest.approx(1 / 10_001, rel=10), 14)
    assert cell.p < 0.001


def test_full_results_mark_the_better(sweep: Sweep) -> None:
    table = full_results(sweep)
    assert table is not None
    assert "Table S1" in table
    headings, _, first, second = rows_of(table)
    assert headings[:6] == ["Sparse ratio", "CDF thr.", "Sparsity", "AUC@30: SparseVGGT", "Ours", "p"]
    assert first[:3] == ["0.5", "0.9", "0.41"]
    assert second[:3] == ["0.8", "0.4", "0.76"]
    assert first[3:6] == ["0.6240", "**0.8240**", "< 0.001"]
    ate = headings.index("ATE: SparseVGGT")
    assert first[ate + 1].startswith("**")


def test_ablation_is_table_1(sweep: Sweep) -> None:
    rows = rows_of(ablation(sweep) or "")
    assert [row[0] for row in rows] == ["", "---", "W_K", "Log", "Ours"]
    assert rows[0][1:3] == ["AUC@30 ↑", "ATE ↓"]
    assert [cell.startswith("**") for cell in rows[-1]] == [False, *[True] * 5]
    assert not any(cell.startswith("**") for row in rows[2:-1] for cell in row)


def test_runtime_is_table_2(sweep: Sweep) -> None:
    rows = rows_of(runtime(sweep) or "")
    assert rows[2] == ["dense", "-", "-", "0.00", "2.000 (2.000 to 2.000)", "n/a"]
    assert [row[:3] for row in rows[3:]] == [
        ["uniform (SparseVGGT)", "0.5", "0.9"],
        ["HeSS", "0.5", "0.9"],
        ["uniform (SparseVGGT)", "0.8", "0.4"],
        ["HeSS", "0.8", "0.4"],
    ]


def test_all_settings_say_better_and_worse(sweep: Sweep) -> None:
    rows = rows_of(all_settings(sweep))
    verdicts = {row[1]: row[-1] for row in rows if row[0] == "0.8/0.4"}
    assert verdicts["HeSS"] == "better"
    assert verdicts["reverse HeSS"] == "worse"
    assert verdicts["uniform (SparseVGGT)"] == ""


def test_categories_count_alike(tmp_path: Path) -> None:
    """By VGGT's protocol ten apples and four benches: the mean of the two categories' means."""
    metric = Sweep.read(write_sweep(tmp_path / "scene")).metrics[0]
    pooled, by_category = (
        Sweep.read(write_sweep(tmp_path / name, name)).cell("uniform", RATIO[0], metric)
        for name in ("co3d-pi3", "co3d-vggt")
    )
    assert pooled is not None
    assert by_category is not None
    assert pooled.value.mean == pytest.approx(0.55 + 0.065)
    assert by_category.value.mean == pytest.approx(0.55 + (0.045 + 0.115) / 2)


def test_unequal_densities_failures_and_nan_are_told(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "toy")
    folder = SweepFolder(root)
    records = folder.read("apple/0")
    key = "reverse @ 0.8/0.4"
    records[key] = SettingRecord({}, {}, 0.5, 0.24, 12, metrics=METRICS | {"ate": math.nan})
    records["hess @ 0.8/0.4"] = SettingRecord({}, failure="cameras in one place")
    del records["hess @ density 0.5"]
    folder.write("apple/0", records)
    text = _section(Sweep.read(root), pictures=[])
    row = next(line for line in text.splitlines() if line.startswith("| 0.8/0.4 | reverse"))
    assert " †" in row
    assert (
        "1 measurements failed and are left out, such as apple/0, hess @ 0.8/0.4: cameras in one place"
        in text
    )
    assert "1 measurements are missing: the sweep was stopped" in text
    read = Sweep.read(root)
    assert [read.cell(name, PAIRS[1], read.metrics[1]).num_scenes for name in ("reverse", "hess")] == [13, 13]


class TestCommand:
    def test_two_sweeps_in_one_report(self, folder: Path, tmp_path: Path) -> None:
        other = write_sweep(tmp_path / "mvs", scenes=3)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/README.md").write_text("by hand")
        assert main(["report", str(folder), str(other), "--out", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out/report.md").read_text()
        pictures = sorted((tmp_path / "out/figures").glob("*.png"))
        assert (tmp_path / "out/README.md").read_text() == "by hand"
        assert re.findall("^## (.*)$", text, re.M) == ["toy", "mvs"]
        assert "hess sweep --preset paper" in text
        linked = re.findall(r"\]\((figures/.*?)\)", text)
        assert {f"figures/{path.name}" for path in pictures} == set(linked)
        for name in (
            "toy_pairs",
            "toy_pairs_paired",
            "toy_density",
            "toy_heatmap",
            "toy_stability",
            "mvs_pairs",
        ):
            assert f"figures/{name}.png" in linked
            assert (tmp_path / f"out/figures/{name}.svg").read_text().startswith("<?xml")
        assert not any("capping" in name or "lambda" in name for name in linked)  # not measured
        measured = read_measurements(tmp_path / "out/toy_measurements.json")
        assert {each.method for each in measured} == {"dense", "uniform", "hess"}
        card = card_files(make_scores(), "you/scores", measurements=measured)["README.md"].decode()
        assert "auc_30 at density 0.241" in card
        with Image.open(tmp_path / "out/figures/toy_pairs.png") as image:
            assert image.width > 800
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50

    def test_bad_input(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = ["--out", str(tmp_path / "out")]
        assert main(["report", str(tmp_path), *out]) == 2
        assert "holds no records of a sweep" in capsys.readouterr().err
        assert main(["report", str(folder), str(folder), *out]) == 2
        assert "two sweeps are named 'toy'" in capsys.readouterr().err
        SweepFolder(tmp_path / "empty").begin(
            {"format": 1, "commands": [], "scenes": {"a": None}, "settings": []}
        )
        assert main(["report", str(tmp_path / "empty"), *out]) == 2
        assert "nothing was measured" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
