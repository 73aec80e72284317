"""Comparisons and benchmarks at toy size."""

from __future__ import annotations

import copy
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hess_plugin.datasets import load_scene, synthetic_scene
from hess_plugin.demo import EMBEDDED_PHOTOS
from hess_plugin.evaluation.measurements import read_measurements
from hess_plugin.geometry.cameras import camera_centers
from hess_plugin.loading import EMBEDDED_MODEL
from hess_plugin.models import VggtModel


class TestComparison:
    def test_table(self, examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--scenes", "2", "--views", "4", "--density", "0.5", "--out", str(tmp_path / "out.json")]
        examples["compare_allocations"].main(options)
        heading, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
        assert heading[0] == "density"
        density = {row[0]: float(row[1]) for row in rows}
        assert density["dense"] == 1
        assert density["uniform"] == density["hess"] == density["reverse"] < 0.6
        measured = {(each.method, each.metric): each for each in read_measurements(tmp_path / "out.json")}
        assert len(measured) == 4 * 3
        for method, _, auc, ate, point_error, *_ in rows:
            printed = {"auc_30": auc, "ate": ate, "point_error": point_error}
            assert {name: f"{measured[method, name].value:.4f}" for name in printed} == printed
            assert f"{measured[method, 'ate'].density:.4f}" == f"{density[method]:.4f}"
        assert measured["hess", "ate"].command.endswith("--scenes 2 --views 4 --density 0.5")


class TestPhotos:
    def test_table(self, examples, capsys: pytest.CaptureFixture[str]) -> None:
        module = examples["examine_photos"]
        module.main([str(EMBEDDED_PHOTOS), "--widths", "40", "48", "--firsts", "2"])
        about, _, *lines = capsys.readouterr().out.splitlines()
        assert about.endswith("2 first photos")
        rows = [re.split(r"  +", line.strip()) for line in lines]
        changes = [*module.CHANGES, *(f"8 rooms{change}" for change in module.ROOM_CHANGES)]
        assert [row[1:3] for row in rows] == [[s, c] for s in ("24 x 40", "32 x 48") for c in changes]
        numbers = torch.tensor([[float(x) for x in row[3:]] for row in rows])
        mean, low, high = numbers[:, :3].unbind(1)
        assert (low <= mean + 1e-3).all()
        assert (mean <= high + 1e-3).all()
        assert len(numbers.unique(dim=0)) == len(rows)  # every change and size tells

    def test_numbers_are_those_of_the_examination(self, examples) -> None:
        module = examples["examine_photos"]
        model = VggtModel.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
        scene = synthetic_scene(3, 4, image_size=56)
        mark = examples["tiny_vggt_recipe"].mark(model, [scene])
        *found, from_depth, with_true_cameras, scale, focal = module.measure(model, scene)
        assert found == pytest.approx(list(mark.values()))
        assert 0 < with_true_cameras < from_depth < 1
        small = replace(
            scene, extrinsics=scene.extrinsics * torch.tensor([1, 1, 1, 0.5]), depth=scene.depth / 2
        )
        *_, same, _ = module.measure(model, small)  # of half a scene in its own unit
        assert scale == pytest.approx(same, rel=1e-4)
        long = replace(scene, intrinsics=scene.intrinsics * torch.tensor([[2.0], [2.0], [1.0]]))
        assert module.measure(model, long)[-1] == pytest.approx(2 * focal, rel=1e-4)

    def test_other_photos_come_first(self, examples) -> None:
        scene = synthetic_scene(3, 5, image_size=8)
        each_first = examples["examine_photos"].each_first
        order = [[int(name) for name in other.view_ids] for other in each_first(scene, 9)]
        assert order == [
            [0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 0, 1, 3, 4], [3, 0, 1, 2, 4], [4, 0, 1, 2, 3],
        ]  # fmt: skip
        assert [other.view_ids[0] for other in each_first(scene, 2)] == ["000", "002"]


class TestRoomsForCameras:
    def test_cameras_stand_to_one_another_as_before(self, examples) -> None:
        module = examples["rooms_for_cameras"]
        scene = load_scene(EMBEDDED_PHOTOS, 40, 8, 6)
        room, other = (module.room_for_cameras(scene, seed) for seed in (0, 1))
        assert (room.depth > 0).all()
        assert 0 <= room.images.min() < room.images.max() <= 1
        assert (room.images - other.images).abs().mean() > 0.05
        one, two = scene.extrinsics[..., :3], room.extrinsics[..., :3]
        torch.testing.assert_close(two @ two[:1].mT, one @ one[:1].mT, rtol=0, atol=1e-5)
        before, after = (camera_centers(x.extrinsics) for x in (scene, room))
        ratio = torch.pdist(after) / torch.pdist(before)
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
        assert after[:, :2].norm(dim=-1).max().item() == pytest.approx(module.REACH, abs=1e-3)
        assert after[:, 2].mean().item() == pytest.approx(module.HEIGHT, abs=1e-3)
        assert (two[:, 1, 2] < -0.7).all()  # their y axes point down

    def test_pixels_and_points_agree(self, examples) -> None:
        """The second photo's depth holds where the first one's points are seen in it, but for hidden ones."""
        scene = load_scene(EMBEDDED_PHOTOS, 112, 8, 2)
        room = examples["rooms_for_cameras"].room_for_cameras(scene, 3)
        seen = room.world_points[0].reshape(-1, 3) @ room.extrinsics[1, :, :3].mT + room.extrinsics[1, :, 3]
        u, v, z = (seen @ room.intrinsics[1].mT).unbind(-1)
        u, v = (u / z).round().long(), (v / z).round().long()
        height, width = room.depth.shape[1:]
        inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        ratio = room.depth[1, v[inside], u[inside]] / z[inside]
        assert inside.float().mean() > 0.2
        assert ratio.median().item() == pytest.approx(1, abs=0.01)


class TestHalfPrecision:
    def test_table(self, examples, capsys: pytest.CaptureFixture[str]) -> None:
        examples["bfloat16_error"].main(["--scenes", "1", "--views", "3"])
        rows = capsys.readouterr().out.splitlines()[-4:]
        errors = torch.tensor([[float(x) for x in re.findall(r"([\d.]+)%", row)] for row in rows])
        assert errors.shape == (4, 5)
        assert (errors[0] == 0).all()
        assert (errors[1:] > 0).all()
        assert (errors[1:] < 2).all()
        assert errors[3].sum() > errors[1].sum()  # on the whole, arithmetic adds to rounded weights

    def test_kept_layers_follow_the_residual_stream(self, examples) -> None:
        module = examples["bfloat16_error"]
        model = module.load_model(module.DemoSettings())[0]
        rounded, images = module.body_in_bfloat16(copy.deepcopy(model)), torch.rand(1, 2, 3, 112, 112)
        with torch.inference_mode():
            assert {x.dtype for x in rounded.aggregator(images).values()} == {torch.bfloat16}
            with torch.autocast("cpu", torch.bfloat16):
                assert {x.dtype for x in model.aggregator(images).values()} == {torch.float32}


class TestBenchmark:
    def test_report(self, examples, capsys: pytest.CaptureFixture[str]) -> None:
        options = "--tiny --scenes 3 --views 3 --width 28 --no-icp"
        examples["benchmark_calibration"].main(options.split())
        *_, machine, model, rank, total = capsys.readouterr().out.splitlines()
        assert machine.startswith(f"1 x cpu, torch {torch.__version__}")
        assert "3 views of 28 x 28 pixels, bfloat16, neighbors exact, ICP off" in model
        assert re.fullmatch(r"rank 0: 3 scenes, both errors in \d+\.\d\d s .* peak \d+\.\d\d GB", rank)
        assert re.fullmatch(r"total: 3 scenes in (.*) s = (.*) s per scene; .*", total)

    @pytest.mark.parametrize(("times", "median"), [([9, 8, 5, 4, 6], 5), ([3000, 2000], 2000)])
    def test_long_calls_are_not_repeated(
        self, times: list[float], median: float, examples, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, left = examples["benchmark_layer"], iter(times)
        monkeypatch.setitem(module.measured.__globals__, "timed", lambda function: (next(left), 0.5))
        assert module.measured(lambda: None) == (median, 0.5)
        assert next(left, None) is None

    def test_layer(self, examples, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is timed runs; the times themselves need a GPU."""
        module, calls = examples["benchmark_layer"], iter(range(1, 99))

        def measured(function, repeats: int = 3) -> tuple[float, float]:
            function()
            return float(next(calls)), 0.25

        monkeypatch.setitem(module.selection.__globals__, "measured", measured)
        row = module.selection(300, "hess", module.RATIO, device="cpu")
        assert re.search(
            r"density 0\.2\d\d  plan    1\.000 ms,  0\.25 GB on top  attention      1\.00 ms", row
        )
        monkeypatch.setitem(module.crossover.__globals__, "GRID", (4, 5))
        monkeypatch.setitem(module.crossover.__globals__, "sdpa_kernel", lambda backend: nullcontext())
        row = module.crossover(2, device="cpu")
        assert row.startswith("    2 views       50 tokens")
        assert row.count(" ms") == 4
        with pytest.raises(SystemExit, match="finds no CUDA GPU here; nothing was run"):
            module.main(["--tokens", "--views", "2"])


class TestProfile:
    def test_times_the_steps_of_the_training(
        self, examples, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, script, seen = examples["profile_training"], examples["train_tiny_vggt"], []

        def make_batch(*drawn):
            batch = examples["tiny_vggt_recipe"].make_batch(*drawn)
            seen.append((batch.images.shape[1], *batch.images.shape[-2:]))
            return batch

        monkeypatch.setattr(module, "DRAWN", 2)
        monkeypatch.setattr(module, "WARM_UP", 0)
        monkeypatch.setattr(script, "make_batch", make_batch)
        out = tmp_path / "profile.json"
        module.main(["--toy", "--repeats", "1", "--kernels", "3", "--out", str(out)])
        assert script.make_batch is make_batch  # timed no longer
        shapes = json.loads(out.read_text())["shapes"]
        found = [(shape["views"], shape["height"], shape["width"]) for shape in shapes]
        assert sum(shape["share"] for shape in shapes) == 1
        assert seen == [shape for shape in found for _ in range(2)] + found[-1:]
        for shape in shapes:
            *parts, step = (shape["ms"][part] for part in module.PARTS)
            assert torch.tensor(parts).min() > 0
            torch.testing.assert_close(torch.tensor(parts).sum(0), torch.tensor(step))
        about, headings, *rows = capsys.readouterr().out.splitlines()
        assert about.startswith(f"device: cpu, torch: {torch.__version__}, views per step: 24, command: ")
        assert headings.split()[:2] == ["views,", "size"]
        assert len(rows) == len(shapes) + 1 + 5  # all; headings, three operators and all of them

    def test_table(self, examples) -> None:
        module = examples["profile_training"]
        shape = {"height": 72, "width": 112, "first": 1.5, "peak": 2.0}
        short = {"scenes": [1, 2, 9], "forward + backward": [5, 5, 5], "optimizer": [3, 3, 3], "step": [10]}
        longer = {part: [2 * time for time in times] for part, times in short.items()}
        results = [shape | {"views": 2, "share": 0.75, "ms": short}]
        results += [shape | {"views": 24, "share": 0.25, "ms": longer}]
        _, first, second, both = module.table(results, 600).splitlines()
        assert re.fullmatch(r" 2 of  72 x 112 +75\.0% +1\.5 +2\.0 ± +1\.0 .* 10\.0 ± .* +60000 +2\.0", first)
        assert re.fullmatch(r"24 of .* +20\.0 ± +0\.0 +30000 +2\.0", second)
        assert both.split() == ["all", "3.0", "2.5", "6.2", "3.8", "12.5", "48000"]
