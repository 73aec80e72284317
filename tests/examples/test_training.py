"""The training at toy size: it learns, resumes exactly, exports a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from office_photos import OFFICE

from hess_plugin.models.vggt import VggtModel

SHORT = ["--toy", "--steps", "20", "--scenes", "1", "--examine-every", "inf"]  # examined at the end alone


class TestTraining:
    def test_trains_and_exports(self, examples, tmp_path: Path) -> None:
        script = examples["train_tiny_vggt"]
        folder, export = tmp_path / "run", tmp_path / "model"
        script.main([str(folder), *SHORT, "--export", str(export)])
        model = VggtModel.from_pretrained(export, dtype=torch.float32)
        assert model(torch.rand(2, 3, 32, 32)).world_points.shape == (1, 2, 32, 32, 3)
        record = json.loads((export / "training.json").read_text())
        assert (record["steps"], record["views_seen"]) == (20, 20 * 24)
        assert record["parameters"] == sum(p.numel() for p in model.parameters())
        assert 0 <= record["held_out_scenes"]["auc_30"] <= 1
        kinds = [json.loads(line)["kind"] for line in (folder / "log.jsonl").read_text().splitlines()]
        assert kinds == ["train", *["examination"] * 3]

    def test_starts_from_a_model_and_marks_real_scenes(self, examples, tmp_path: Path) -> None:
        script, start, export = examples["train_tiny_vggt"], tmp_path / "start", tmp_path / "model"
        saved = examples["tiny_vggt_recipe"].Recipe.toy().build_model()
        saved.save_pretrained(start)
        options = ["--learning-rate", "1e-5", "--start-from", str(start), "--real", str(OFFICE)]
        script.main([str(tmp_path), *SHORT, *options, "--export", str(export)])
        found = VggtModel.from_pretrained(export, dtype=torch.float32).state_dict()
        for key, value in saved.state_dict().items():  # at this rate, it stays near
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3, msg=key)
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        marked = [entry for entry in log if entry["kind"] == "examination"]
        assert [entry["scenes"] for entry in marked] == ["held_out", "walks", "visits", "hololens_office"]
        assert all(0 <= entry["auc_30"] <= 1 and entry["point_error"] > 0 for entry in marked)

    def test_finished_keeps_a_part_of_the_start(self, examples, tmp_path: Path) -> None:
        script, start = examples["train_tiny_vggt"], tmp_path / "start"
        saved = examples["tiny_vggt_recipe"].Recipe.toy().build_model()
        saved.save_pretrained(start)
        before = saved.state_dict()
        options = [str(tmp_path), "--toy", "--steps", "4", "--warmup", "1"]
        for more, kept in (["--start-from", str(start)], 1 / 3), ([], 0):
            training = script.Training(script.parse_arguments([*options, *more]))
            training.learn()
            learned, finished = training.average.state_dict(), training.finished().state_dict()
            assert any(not value.allclose(before[key]) for key, value in learned.items())
            for key, value in learned.items():
                torch.testing.assert_close(finished[key], value.lerp(before[key], kept), msg=key)

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
