"""The training example at toy size: it learns, resumes exactly, exports a model; its parts by hand."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hess_plugin.datasets.synthetic import draw_numbers, render_scenes
from hess_plugin.evaluation.measurements import read_measurements
from hess_plugin.geometry.cameras import encode_pose, quaternion_to_rotation
from hess_plugin.models.vggt import VggtModel

EXAMPLES = Path(__file__).parents[1] / "examples"
OFFICE = EXAMPLES.parent / "hess_plugin/assets/hololens_office"
NAMES = ("train_tiny_vggt", "tiny_vggt_recipe", "solid_texture", "muon", "compare_allocations")
NAMES += ("benchmark_calibration", "benchmark_layer", "bfloat16_error")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some gradients on a GPU differ from run to run in their last bits."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def examples() -> Iterator[dict[str, ModuleType]]:
    """The example's modules, imported as the script imports them."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield {name: __import__(name) for name in NAMES}
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in NAMES:
            sys.modules.pop(name, None)


class TestTraining:
    def test_trains_and_exports(self, examples, tmp_path: Path) -> None:
        script = examples["train_tiny_vggt"]
        folder, export = tmp_path / "run", tmp_path / "model"
        script.main([str(folder), "--toy", "--steps", "20", "--scenes", "1", "--export", str(export)])
        model = VggtModel.from_pretrained(export, dtype=torch.float32)
        assert model(torch.rand(2, 3, 32, 32)).world_points.shape == (1, 2, 32, 32, 3)
        record = json.loads((export / "training.json").read_text())
        assert (record["steps"], record["views_seen"]) == (20, 20 * 24)
        assert record["parameters"] == sum(p.numel() for p in model.parameters())
        assert 0 <= record["held_out_scenes"]["auc_30"] <= 1
        kinds = [json.loads(line)["kind"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert kinds == ["train", "examination"]

    def test_starts_from_a_model_and_marks_real_scenes(self, examples, tmp_path: Path) -> None:
        script, start, export = examples["train_tiny_vggt"], tmp_path / "start", tmp_path / "model"
        saved = examples["tiny_vggt_recipe"].Recipe.toy().build_model()
        saved.save_pretrained(start)
        options = ["--toy", "--steps", "20", "--scenes", "1", "--learning-rate", "1e-5"]
        options += ["--start-from", str(start), "--real", str(OFFICE), "--export", str(export)]
        script.main([str(tmp_path), *options])
        found = VggtModel.from_pretrained(export, dtype=torch.float32).state_dict()
        for key, value in saved.state_dict().items():  # at this rate, it stays near
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3, msg=key)
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        marked = [entry for entry in log if entry["kind"] == "examination"]
        assert [entry["scenes"] for entry in marked] == ["held_out", "hololens_office"]
        assert all(0 <= entry["auc_30"] <= 1 and entry["point_error"] > 0 for entry in marked)

    def test_resumed_equals_unbroken(self, examples, tmp_path: Path) -> None:
        script = examples["train_tiny_vggt"]

        def steps(count: int, *more: str):
            options = [str(tmp_path), "--toy", "--steps", "4", "--warmup", "1", *more]
            training = script.Training(script.parse_arguments(options))
            for _ in range(count):
                assert not training.look_at_clock()
                training.learn()
            return training

        unbroken = steps(4)
        assert unbroken.look_at_clock()
        steps(2).save()
        resumed = steps(2, "--resume")
        assert resumed.step == 4
        for name in ("model", "average"):
            expected = getattr(unbroken, name).state_dict()
            for key, value in getattr(resumed, name).state_dict().items():
                torch.testing.assert_close(value, expected[key], rtol=0, atol=0, msg=key)

    def test_it_learns(self, examples, tmp_path: Path) -> None:
        """On one lesson, seen again and again, the loss must fall by far."""
        script, recipe = examples["train_tiny_vggt"], examples["tiny_vggt_recipe"]
        torch.manual_seed(0)
        training = script.Training(script.parse_arguments([str(tmp_path), "--toy", "--steps", "9"]))
        drawn, views = recipe.draw_lesson(training.recipe, 0.0, 0, torch.Generator().manual_seed(0))
        batch = recipe.make_batch(*drawn)
        losses = []
        for _ in range(25):
            terms = training.lesson(batch, views)
            terms["loss"].backward()
            for optimizer in training.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(terms["loss"].item())
        assert losses[-1] < 0.7 * losses[0]

    def test_nothing_to_resume(self, examples, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"there is no .*checkpoint\.pt; start without --resume"):
            examples["train_tiny_vggt"].main([str(tmp_path), "--toy", "--steps", "2", "--resume"])


class TestRecipe:
    def test_small_enough_to_ship(self, examples) -> None:
        model = examples["tiny_vggt_recipe"].Recipe().build_model()
        assert 2 * sum(p.numel() for p in model.parameters()) < 24e6

    def test_lessons_grow(self, examples) -> None:
        recipe = examples["tiny_vggt_recipe"].Recipe()
        first = {recipe.lesson(0.0, step) for step in range(100)}
        last = {recipe.lesson(1.0, step) for step in range(300)}
        assert {count for count, _, _ in first} == {2, 3, 4}
        assert {span for _, _, span in first} == {(0.3, 1.0)}
        assert {count for count, _, _ in last} == {2, 3, 4, 6, 8, 12, 16, 24}
        assert {span for _, _, span in last} == {(0.6, 6.0)}
        assert {size for _, size, _ in first} == {size for _, size, _ in last} == {(112, 112), (72, 112)}

    def test_truth_is_normalised(self, examples) -> None:
        numbers = draw_numbers(3, 2, torch.Generator().manual_seed(0))
        batch = examples["tiny_vggt_recipe"].normalise(render_scenes(numbers, (12, 16)))
        torch.testing.assert_close(batch.extrinsics[:, 0], torch.eye(3, 4).expand(3, 3, 4), rtol=0, atol=1e-5)
        distance, known = batch.points.norm(dim=-1), batch.depth > 0
        for scene in range(3):
            assert distance[scene][known[scene]].mean().item() == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(batch.points[:, 0, ..., 2], batch.depth[:, 0], rtol=1e-4, atol=1e-5)

    def test_camera_loss(self, examples) -> None:
        camera_loss = examples["tiny_vggt_recipe"].camera_loss
        truth = torch.tensor([[[1.0, 2, 3, 0, 0, 0, 1, 0.8, 0.9]]])
        turned = truth * torch.tensor([1, 1, 1, -1, -1, -1, -1, 1, 1])
        assert camera_loss([truth, turned], truth)["camera"] == 0  # one view has no pairs
        shifted = truth + torch.tensor([0.3, 0, 0, 0, 0, 0, 0, 0.2, 0.2])
        # 0.3 / 3 for the translation and half of 0.2 for the fields of view; the earlier pose counts 0.6
        assert camera_loss([truth, shifted], truth)["camera"].item() == pytest.approx(0.2)
        assert camera_loss([shifted, truth], truth)["camera"].item() == pytest.approx(0.12)

    def test_pairs_know_no_world(self, examples) -> None:
        """Moving and turning the world changes no pair; moving one camera changes the pairs with it."""
        pair_error = examples["tiny_vggt_recipe"].pair_error
        generator = torch.Generator().manual_seed(0)
        rotation = quaternion_to_rotation(torch.rand(2, 3, 4, generator=generator))
        position = 3 * torch.rand(2, 3, 3, 1, generator=generator)
        turn, shift = quaternion_to_rotation(torch.rand(4, generator=generator)), torch.ones(3, 1)
        moved = torch.cat([rotation @ turn, rotation @ shift + position], -1)
        lens = torch.eye(3).expand(2, 3, 3, 3)
        truth = encode_pose(torch.cat([rotation, position], -1), lens, (2, 2))
        assert pair_error(truth, truth) < 2e-3
        assert pair_error(encode_pose(moved, lens, (2, 2)), truth) < 2e-3
        near = torch.zeros(1, 2, 9)
        near[..., 6], near[0, 1, 0] = 1.0, 0.1  # two cameras side by side, at a distance of 0.1
        opposite = near * torch.tensor([-1, 1, 1, 1, 1, 1, 1, 1, 1])
        assert pair_error(opposite, near).item() == pytest.approx(0.2 / 0.2, rel=1e-2)
        turned = near.clone()
        turned[0, 1, 5:7] = torch.tensor([math.sin(0.1), math.cos(0.1)])
        # By 0.2 radians around its axis, and so it stands 0.02 beside where the first one sees it.
        assert pair_error(turned, near).item() == pytest.approx(0.2 + 0.1 / 2, rel=1e-2)

    def test_confident_distance(self, examples) -> None:
        distance, confidence = torch.tensor([1.0, 3.0, 50.0]), torch.tensor([1.0, 2.0, 9.0])
        known = torch.tensor([True, True, False])
        loss, plain = examples["tiny_vggt_recipe"].confident_distance(distance, confidence, known)
        assert loss.item() == pytest.approx((1 + 6 - 0.2 * math.log(2) + 0.2 * math.log(9)) / 2)
        assert plain.item() == 2

    def test_blur_and_noise(self, examples) -> None:
        recipe, generator = examples["tiny_vggt_recipe"], torch.Generator().manual_seed(0)
        numbers, span = draw_numbers(6, 2, generator), torch.full((6,), 2.0)
        clean = render_scenes(numbers, (12, 16), span).images
        taken = recipe.make_batch(numbers, (12, 16), span, torch.zeros(6) > 0, generator).images
        assert taken.min() >= 0
        assert taken.max() <= 1
        spread = (taken - clean).square().mean((1, 2, 3, 4)).sqrt()
        assert (spread > 0).all()
        assert spread.max() > 2 * spread.min()  # some scenes have more than others
        # Blur and noise leave the brightness of a scene as it is, detail and another look nearly so.
        assert ((taken - clean).mean((1, 2, 3, 4)).abs() < 0.1).all()

    def test_look_belongs_to_a_scene(self, examples) -> None:
        """Some scenes keep theirs; in the others equal photos stay equal, and edges where they are."""
        change_look = examples["tiny_vggt_recipe"].change_look
        photo = torch.full((16, 1, 3, 9, 10), 0.2)
        photo[..., 5:] = 0.8
        changed = change_look(photo.expand(-1, 2, -1, -1, -1), torch.Generator().manual_seed(0))
        assert torch.equal(changed[:, 0], changed[:, 1])
        own = (changed[:, 0] == photo[:, 0]).flatten(1).all(1)
        assert 3 < own.sum() < 13
        step = changed.diff(dim=-1).abs().amax((0, 1, 2, 3))
        assert (step[3:6] > 0.05).all()  # a filter of width 3 reaches one pixel to either side
        assert (step[:3] < 1e-5).all()
        assert (step[6:] < 1e-5).all()


class TestSolidTexture:
    def test_leaves_of_all_sizes(self, examples) -> None:
        texture = examples["solid_texture"]
        volume = texture.dead_leaves(torch.device("cpu")).view(*[texture.SIDE] * 3, 3)
        bare = (volume == 0.5).all(-1).float().mean()
        assert bare < 0.3
        # Neighbours mostly belong to one leaf, also beyond the edge, where the volume begins again.
        edge = (volume[-1] == volume[0]).all(-1).float().mean()
        inside = (volume[1:] == volume[:-1]).all(-1).float().mean()
        assert 0.6 < inside < 0.9
        assert edge.item() == pytest.approx(inside.item(), abs=0.1)
        far = (volume[20:] == volume[:-20]).all(-1) & (volume[20:] != 0.5).any(-1)
        assert far.any()  # some leaves are as large as that

    def test_detail_hangs_on_points(self, examples) -> None:
        """Two photos of the same points, in other places of the picture, show them in the same colours."""
        add_detail, generator = examples["solid_texture"].add_detail, torch.Generator().manual_seed(0)
        points = torch.rand(16, 1, 9, 10, 3, generator=generator).repeat(1, 2, 1, 1, 1)
        points[:, 1] = points[:, 1].flip(1)
        known = torch.ones(16, 2, 9, 10) > 0
        known[:, :, 4] = False
        grey = torch.full((16, 2, 3, 9, 10), 0.5)
        seen = add_detail(grey, points, known, generator)
        assert torch.equal(seen[:, 1], seen[:, 0].flip(2))
        assert (seen[:, :, :, 4] == 0.5).all()
        plain = (seen == grey).flatten(1).all(1)
        assert 3 < plain.sum() < 13
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert (seen[~plain].std((1, 2, 3, 4)) > 0).all()


class TestMuon:
    def test_orthogonalize(self, examples) -> None:
        matrices = torch.randn(4, 24, 56, generator=torch.Generator().manual_seed(0)) * 30
        values = torch.linalg.svdvals(examples["muon"].orthogonalize(matrices).float())
        assert values.min() > 0.5
        assert values.max() < 1.3

    def test_fused_matrix_is_three(self, examples) -> None:
        """One step on a fused matrix equals steps on its thirds; and its size is the learning rate's."""
        muon = examples["muon"].Muon
        gradient = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
        fused = torch.nn.Parameter(torch.zeros(48, 16))
        thirds = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
        fused.grad = gradient
        for third, part in zip(thirds, gradient.chunk(3), strict=True):
            third.grad = part
        muon([fused], lr=0.1).step()
        muon(thirds, lr=0.1).step()
        torch.testing.assert_close(fused.detach(), torch.cat(thirds).detach(), rtol=0, atol=1e-3)
        assert (
            0.01 < fused.detach().square().mean().sqrt() < 0.03
        )  # 0.2 · lr, give or take the singular values

    def test_shapes_of_all_kinds(self, examples) -> None:
        weights = [
            torch.nn.Parameter(torch.ones(shape)) for shape in ((8, 8), (32, 8), (8, 32), (24, 8), (8, 8))
        ]
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        before = [weight.detach().clone() for weight in weights]
        examples["muon"].Muon(weights, lr=0.1, weight_decay=0.1).step()
        for old, weight in zip(before, weights, strict=True):
            assert torch.isfinite(weight).all()
            assert not torch.allclose(old, weight)
            assert ((weight - 0.99 * old) * weight.grad).sum() < 0  # downhill


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
