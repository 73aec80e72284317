"""Calibration over many scenes in one process: what is kept, left out, resumed and said."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny_native_vggt
from torch import nn
from toy_dataset import CONFIG, ToyDataset

from hess_plugin.backbones import find_backbone
from hess_plugin.calibration import measuring
from hess_plugin.calibration.fisher import scene_traces
from hess_plugin.calibration.records import record_folders
from hess_plugin.calibration.reproducible import reproducible
from hess_plugin.calibration.run import LOG_FILE, calibrate
from hess_plugin.datasets import Scene
from hess_plugin.errors import InputError
from hess_plugin.gates import GATES_FILE
from hess_plugin.scores import CONFIG_FILE, SCORES_FILE, HeadScores

torch.manual_seed(0)
MODEL = tiny_native_vggt().eval()
SCENES = [f"toy/{index}" for index in range(5)]
BROKEN = {"toy/1": InputError("frame 7: cut short"), "toy/3": ValueError("cannot be\n  aligned")}


def scores_of(out: Path, dataset: ToyDataset | None = None, **options: Any) -> HeadScores:
    scores = calibrate(MODEL, dataset or ToyDataset(), options.pop("config", CONFIG), out=out, **options)
    assert scores is not None
    return scores


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scores file of a run without incidents."""
    out = tmp_path_factory.mktemp("unbroken")
    scores_of(out)
    return (out / SCORES_FILE).read_bytes()


class TestWithoutIncidents:
    def test_traces_are_those_of_each_scene(self, tmp_path: Path) -> None:
        scores = scores_of(tmp_path, base_model="org/toy", base_revision="abc")
        with reproducible(torch.device("cpu")):
            rows = [scene_traces(MODEL, ToyDataset().load(each, 3, 0), CONFIG).traces for each in SCENES]
        for kind in ("camera", "points"):
            expected = torch.stack([row[kind] for row in rows])
            assert torch.equal(scores.scene_traces[kind], expected)
            assert (expected > 0).all()
        info = scores.info
        assert (info.dataset, info.scene_ids, info.view_ids[0]) == (
            "toy",
            tuple(SCENES),
            ("000", "001", "002"),
        )
        assert (info.backbone, info.num_layers, info.num_heads, info.head_dim) == ("vggt", 2, 4, 8)
        assert (info.base_model, info.base_revision) == ("org/toy", "abc")
        assert (info.num_views, info.seed, info.camera_weight) == (3, 0, 0.5)
        assert info.calibration["max_points"] == 50
        assert not set(info.calibration) & {"num_scenes", "seed", "projections", "camera_weight"}
        assert info.dataset_settings["image_width"] == 16
        assert info.weights_sha256 == find_backbone(MODEL).weights_sha256(MODEL)

    def test_what_is_left_behind(self, tmp_path: Path) -> None:
        scores = scores_of(tmp_path)
        (records,) = record_folders(tmp_path)
        names = {LOG_FILE, CONFIG_FILE, SCORES_FILE, records.name}
        assert {path.name for path in tmp_path.iterdir()} == names
        assert HeadScores.load(tmp_path).info == scores.info
        log = json.loads((tmp_path / LOG_FILE).read_text())
        assert (log["processes"], log["device"]) == (1, "cpu")
        low, high = (torch.tensor(log["weights_95_percent"][end]) for end in ("low", "high"))
        assert low.shape == scores.weights().shape
        assert (low <= high).all()
        assert [entry["scene_id"] for entry in log["scenes"]] == SCENES
        for entry in log["scenes"]:
            assert entry["seconds"] > 0
            assert entry["peak_memory"] > 2**20
            assert entry["failure"] is None
            assert entry["report"]["camera_error"] > 0

    def test_views_passed_over_are_counted(self, tmp_path: Path) -> None:
        class WithBlackFrame(ToyDataset):
            def load(self, *args: Any) -> Scene:
                return replace(super().load(*args), unusable_views={"000007": "the image is black"})

        scores_of(tmp_path, WithBlackFrame())
        log = json.loads((tmp_path / LOG_FILE).read_text())
        assert [entry["unusable_views"] for entry in log["scenes"]] == [{"000007": "the image is black"}] * 5

    def test_nothing_depends_on_threads_or_on_what_ran_before(self, tmp_path: Path, unbroken: bytes) -> None:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            scene_traces(MODEL, ToyDataset().load("toy/4", 3, 9), CONFIG)
            scores_of(tmp_path)
            assert torch.get_num_threads() == threads + 1
        finally:
            torch.set_num_threads(threads)
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken

    def test_settings_count(self, tmp_path: Path) -> None:
        config = replace(CONFIG, num_scenes=2, seed=1, camera_weight=0.25, projections=("query", "key"))
        scores = scores_of(tmp_path, config=config)
        assert scores.info.scene_ids == tuple(ToyDataset().choose(2, 1))
        assert (scores.info.seed, scores.info.camera_weight) == (1, 0.25)
        assert set(scores.scene_traces) == {"camera", "points", "camera.key", "points.key"}

    def test_bfloat16_ranks_as_float32(self, tmp_path: Path) -> None:
        dense = scores_of(tmp_path / "a").weights()
        rounded = scores_of(tmp_path / "b", config=replace(CONFIG, precision="bfloat16")).weights()
        assert not torch.equal(dense, rounded)
        torch.testing.assert_close(dense, rounded, rtol=0, atol=0.05)


class TestProgress:
    def test_bar_counts_scenes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(KeyboardInterrupt):
            scores_of(tmp_path, ToyDataset({"toy/2": KeyboardInterrupt()}))
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stderr", terminal)
        scores_of(tmp_path, resume=True)
        _, first, *_, last = terminal.getvalue().split("\r")
        assert "2/5" in first
        assert "5/5" in last
        assert "GiB" in last

    def test_lines_in_a_log(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        scores_of(tmp_path)
        out, err = capsys.readouterr()
        assert out == ""
        assert "\r" not in err
        assert "5/5" in err.strip().splitlines()[-1]


class TestResuming:
    @pytest.mark.parametrize("incident", [KeyboardInterrupt(), RuntimeError("a bug"), KeyError("a bug")])
    def test_goes_on_where_it_stopped(self, tmp_path: Path, incident: BaseException, unbroken: bytes) -> None:
        """A bug is no failed scene: it stops the run, and leaves no record of its scene."""
        with pytest.raises(type(incident)):
            scores_of(tmp_path, ToyDataset({"toy/2": incident}))
        with pytest.raises(InputError, match="continue it with --resume"):
            scores_of(tmp_path)
        dataset = ToyDataset()
        scores_of(tmp_path, dataset, resume=True)
        assert dataset.loaded == SCENES[2:]
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken

    @pytest.mark.parametrize("finished", [False, True])
    def test_with_other_scenes(self, tmp_path: Path, unbroken: bytes, finished: bool) -> None:
        """Neither more nor fewer scenes are measured twice, and the files are those of a run at once."""
        few, all_ = (replace(CONFIG, num_scenes=count, gates=True) for count in (3, 5))
        drawn = ToyDataset().choose(3, 0)
        assert drawn != SCENES[:3]  # so that new rows come between those that are there
        broken = ToyDataset({drawn[1]: ValueError("dark")})
        if finished:
            scores_of(tmp_path / "grown", broken, config=few, skip_failed=True)
        else:
            with pytest.raises(InputError, match="1 of 3 scenes failed"):
                scores_of(tmp_path / "grown", broken, config=few)
        dataset = ToyDataset()
        scores_of(tmp_path / "grown", dataset, config=all_, resume=True)
        assert dataset.loaded == sorted({*SCENES, drawn[1]} - {drawn[0], drawn[2]})
        assert (tmp_path / "grown" / SCORES_FILE).read_bytes() == unbroken
        again = ToyDataset()
        scores_of(tmp_path / "grown", again, config=few, resume=True)
        assert again.loaded == []
        for out, config in (("few", few), ("all", all_)):
            scores_of(tmp_path / out, config=config)
        for name in (SCORES_FILE, CONFIG_FILE, GATES_FILE):
            assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()

    def test_with_nothing_to_resume_it_starts(self, tmp_path: Path, unbroken: bytes) -> None:
        scores_of(tmp_path, resume=True)
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken

    def test_a_damaged_record_is_measured_again(
        self, tmp_path: Path, unbroken: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            scores_of(tmp_path, ToyDataset({"toy/3": KeyboardInterrupt()}))
        records = record_folders(tmp_path)[0].glob("*.safetensors")
        damaged = sorted(records, key=lambda path: path.stat().st_mtime_ns)[1]
        damaged.write_bytes(damaged.read_bytes()[:-8])
        dataset = ToyDataset()
        with caplog.at_level(logging.WARNING):
            scores_of(tmp_path, dataset, resume=True)
        assert dataset.loaded == ["toy/1", "toy/3", "toy/4"]
        assert "scene toy/1 is measured again" in caplog.text
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken

    def test_only_what_decides_the_traces_makes_another_run(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            scores_of(tmp_path, ToyDataset({"toy/3": KeyboardInterrupt()}))
        for config in (
            replace(CONFIG, seed=1),
            replace(CONFIG, max_points=51),
        ):
            with pytest.raises(InputError, match="records of another calibration, which differs in "):
                scores_of(tmp_path, config=config, resume=True)
        other = ToyDataset()
        other.settings["light"] = 3
        with pytest.raises(InputError, match=r"differs in dataset_settings\.light \(None, now 3\)"):
            scores_of(tmp_path, other, resume=True)
        dataset = ToyDataset()
        scores = scores_of(tmp_path, dataset, config=replace(CONFIG, camera_weight=1.0), resume=True)
        assert scores.info.camera_weight == 1.0
        assert dataset.loaded == ["toy/3", "toy/4"]

    def test_data_in_another_folder_is_other_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Scenes of two trees may have the same ids; data that moved is found by a link in its old place."""
        roots = {name: tmp_path / "data of a rather long name, as folders have them" / name for name in "ab"}
        for root in roots.values():
            root.mkdir(parents=True)

        def dataset_in(root: Path, **raises: Any) -> ToyDataset:
            dataset = ToyDataset(raises.get("raises"))
            dataset.root = root
            return dataset

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            scores_of(out, dataset_in(roots["a"], raises={"toy/3": KeyboardInterrupt()}))
        named = f"differs in dataset_root ({str(roots['a'])!r}, now {str(roots['b'])!r}); "
        advice = "resume it as it was started (if the data moved, with a link in its old place), or remove"
        with pytest.raises(InputError, match=re.escape(named + advice)):
            scores_of(out, dataset_in(roots["b"]), resume=True)
        roots["a"].rename(tmp_path / "moved")
        roots["a"].symlink_to(tmp_path / "moved")
        monkeypatch.chdir(roots["b"])
        resumed = dataset_in(Path("../a/"))
        scores_of(out, resumed, resume=True)
        assert resumed.loaded == ["toy/3", "toy/4"]
        for path in out.rglob("*"):
            assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
        with pytest.raises(InputError, match="differs in dataset_root"):  # finished or not
            scores_of(out, dataset_in(roots["b"]), resume=True)

    def test_finished_scores_are_left_alone(self, tmp_path: Path, unbroken: bytes) -> None:
        scores_of(tmp_path)
        dataset = ToyDataset()
        with pytest.raises(InputError, match="holds scores already"):
            scores_of(tmp_path, dataset)
        with pytest.raises(InputError, match="records of another calibration"):
            scores_of(tmp_path, dataset, config=replace(CONFIG, seed=1), resume=True)
        scores_of(tmp_path, dataset, resume=True)  # nothing is left to do
        shutil.rmtree(record_folders(tmp_path)[0])
        with pytest.raises(InputError, match="holds scores already"):
            scores_of(tmp_path, dataset, resume=True)
        assert dataset.loaded == []
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken


class TestFailedScenes:
    def test_all_are_named_and_the_others_kept(self, tmp_path: Path, unbroken: bytes) -> None:
        with pytest.raises(InputError) as caught:
            scores_of(tmp_path, ToyDataset(BROKEN))
        assert str(caught.value).startswith(
            "2 of 5 scenes failed (toy/1: frame 7: cut short; toy/3: cannot be aligned); "
        )
        assert "--resume --skip-failed leaves them out" in str(caught.value)
        assert not (tmp_path / SCORES_FILE).exists()
        log = json.loads((tmp_path / LOG_FILE).read_text())
        assert log["scenes"][1]["failure"] == "frame 7: cut short"
        mended = ToyDataset()
        scores_of(tmp_path, mended, resume=True)
        assert mended.loaded == ["toy/1", "toy/3"]
        assert (tmp_path / SCORES_FILE).read_bytes() == unbroken

    def test_left_out_later_without_measuring_anything(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="2 of 5 scenes failed"):
            scores_of(tmp_path / "later", ToyDataset(BROKEN))
        dataset = ToyDataset()
        later = scores_of(tmp_path / "later", dataset, resume=True, skip_failed=True)
        assert dataset.loaded == []
        assert later.info.skipped == {"toy/1": "frame 7: cut short", "toy/3": "cannot be aligned"}
        assert later.info.scene_ids == ("toy/0", "toy/2", "toy/4")
        scores_of(tmp_path / "at once", ToyDataset(BROKEN), skip_failed=True)
        assert (tmp_path / "later" / SCORES_FILE).read_bytes() == (
            tmp_path / "at once" / SCORES_FILE
        ).read_bytes()

    def test_a_gradient_that_is_not_finite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Never averaged in: the scene is named with its layer."""

        def scene_with_nan(self: ToyDataset, scene_id: str, num_views: int, seed: int) -> Any:
            scene = load(self, scene_id, num_views, seed)
            return replace(scene, images=scene.images * torch.nan) if scene_id == "toy/2" else scene

        load = ToyDataset.load
        monkeypatch.setattr(ToyDataset, "load", scene_with_nan)
        with pytest.raises(InputError, match=r"1 of 5 scenes failed \(toy/2: .*NaN") as caught:
            scores_of(tmp_path)
        assert str(caught.value).count("toy/2") == 1

    @pytest.mark.parametrize("skip_failed", [False, True])
    def test_nothing_is_left(self, tmp_path: Path, skip_failed: bool) -> None:
        dataset = ToyDataset({each: ValueError("dark") for each in SCENES})
        with pytest.raises(InputError, match=r"5 of 5 scenes failed .*; nothing is left to calibrate on"):
            scores_of(tmp_path, dataset, skip_failed=skip_failed)
        assert not (tmp_path / SCORES_FILE).exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("model", "message"),
        [(nn.Linear(2, 2), "no backbone matches `Linear`"), (None, "has sparse attention")],
    )
    def test_models(self, tmp_path: Path, model: nn.Module | None, message: str) -> None:
        if model is None:
            model = tiny_native_vggt()
            object.__setattr__(model, "hess", object())
        dataset = ToyDataset()
        with pytest.raises(ValueError, match=message):
            calibrate(model, dataset, CONFIG, out=tmp_path / "out")
        assert dataset.loaded == []
        assert not (tmp_path / "out").exists()


def test_next_scene_is_read_while_one_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset, seen = ToyDataset(), []
    measure = measuring._measure

    def watched(model: nn.Module, scene_id: str, loading: Any, config: Any) -> Any:
        loading.result()
        record = measure(model, scene_id, loading, config)
        seen.append((scene_id, len(dataset.loaded)))
        return record

    monkeypatch.setattr(measuring, "_measure", watched)
    scores_of(tmp_path, dataset)
    assert [scene_id for scene_id, _ in seen] == SCENES
    for index, (_, loaded) in enumerate(seen):
        assert loaded <= index + 2  # one ahead, not all: memory
    assert dataset.loaded == SCENES
