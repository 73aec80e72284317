"""Head pruning: gates against W_O, rules against brute force, masks against the dense model."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibrating import UNTRAINED
from calibrating import calibrate as calibrate_arguments
from families import MODELS, build, images
from sidecars import scores_of
from torch import Tensor, nn
from toy_dataset import CONFIG, ToyDataset

from hess_plugin.backbones import find_backbone
from hess_plugin.baselines import kwon, michel
from hess_plugin.baselines.head_masks import HeadMaskProcessor, highest
from hess_plugin.baselines.pruning import HeadPruningConfig, kept_heads, prune_heads
from hess_plugin.calibration.errors import calibration_errors
from hess_plugin.calibration.fisher import scene_traces
from hess_plugin.calibration.run import calibrate
from hess_plugin.cli import main
from hess_plugin.errors import InputError
from hess_plugin.gates import GATES_FILE, HeadGates, gate_name
from hess_plugin.patch import apply_processors
from hess_plugin.scores import SCORES_FILE

SPARSE = [name for name in MODELS if find_backbone(build(name)).dense_only is None]


def gates_of(model: nn.Module, seed: int = 0) -> HeadGates:
    """Random gates of three scenes that fit a model."""
    info = scores_of(model).info
    info = replace(info, scene_ids=("a", "b", "c"), view_ids=(info.view_ids[0],) * 3)
    generator = torch.Generator().manual_seed(seed)
    shape = (3, info.num_layers, info.num_heads)
    drawn = {e: torch.randn(shape, generator=generator).double() for e in ("camera", "points")}
    return HeadGates(drawn, info)


def tensors(outputs: object) -> list[Tensor]:
    """All tensors of a prediction, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = (
        outputs.values()
        if isinstance(outputs, dict)
        else outputs
        if isinstance(outputs, list | tuple)
        else ()
    )
    return [tensor for item in items for tensor in tensors(item)]


@torch.no_grad()
def outputs(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    return tensors(find_backbone(model).predict(model, images()))


class TestGates:
    def test_gradients_by_the_columns_of_the_projection(self) -> None:
        """A gate scales the head's columns of W_O, so dE/dg is the sum of W_O * dE/dW_O there: no hook in it.

        Finite differences would not do: the camera head cuts gradients between its iterations, as VGGT does.
        """
        model, scene = build("native-vggt").double(), ToyDataset().load("toy/0", 3, 0)
        scene = replace(scene, images=scene.images.double())
        measured = scene_traces(model, scene, replace(CONFIG, gates=True))
        backbone = find_backbone(model)
        for kind in ("camera", "points"):
            model.zero_grad()
            prediction = backbone.reconstruct(backbone.predict(model, scene.images[None]))
            getattr(calibration_errors(prediction, scene, CONFIG), kind).backward()
            for layer, attn in enumerate(backbone.global_attentions(model).values()):
                weight = attn.proj.weight
                expected = (weight * weight.grad).detach().sum(0).unflatten(0, (4, -1)).sum(1)
                found = measured.traces[gate_name(kind)][layer]
                torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
                assert (found != 0).all()

    def test_they_change_no_trace_and_leave_nothing_behind(self) -> None:
        model, scene = build("native-vggt"), ToyDataset().load("toy/0", 3, 0)
        plain = scene_traces(model, scene, CONFIG)
        gated = scene_traces(model, scene, replace(CONFIG, gates=True))
        assert set(gated.traces) - set(plain.traces) == {"camera.gate", "points.gate"}
        assert all(torch.equal(gated.traces[name], trace) for name, trace in plain.traces.items())
        assert not any(module._forward_pre_hooks for module in model.modules())

    def test_calibrated_beside_the_same_scores(self, tmp_path: Path) -> None:
        model = build("native-vggt")
        for name in ("plain", "gated"):
            calibrate(model, ToyDataset(), replace(CONFIG, gates=name == "gated"), out=tmp_path / name)
        files = [(tmp_path / name / SCORES_FILE).read_bytes() for name in ("plain", "gated")]
        assert files[0] == files[1]
        assert not (tmp_path / "plain" / GATES_FILE).exists()
        gates = HeadGates.load(tmp_path / "gated")
        assert gates.gradients["camera"].shape == (5, 2, 4)
        assert gates.of_loss(0.25).equal(0.25 * gates.gradients["camera"] + 0.75 * gates.gradients["points"])
        gates.save(tmp_path / "again")
        assert (tmp_path / "again" / GATES_FILE).read_bytes() == (
            tmp_path / "gated" / GATES_FILE
        ).read_bytes()

    def test_by_command(self, tmp_path: Path) -> None:
        build("native-vggt").save_pretrained(tmp_path / "model")
        more = ["--num-scenes", "1", "--num-views", "2", "--max-points", "50", "--gates", *UNTRAINED]
        options = calibrate_arguments(tmp_path / "model", tmp_path / "out", "--dataset", "synthetic", *more)
        assert main(options) == 0
        assert HeadGates.load(tmp_path / "out").gradients["points"].shape == (1, 2, 4)

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"no head_gates.safetensors; measure it with hess calibrate --gates"
        ):
            HeadGates.load(tmp_path)
        gates = gates_of(build("native-vggt"))
        gates.save(tmp_path)
        content = (tmp_path / GATES_FILE).read_bytes()
        (tmp_path / GATES_FILE).write_bytes(content[:-9])
        with pytest.raises(InputError, match="cannot read"):
            HeadGates.load(tmp_path)
        for broken in (torch.nan, torch.inf):
            gradients = gates.gradients | {"camera": gates.gradients["camera"] * broken}
            with pytest.raises(ValueError, match="camera error must be finite"):
                HeadGates(gradients, gates.info)


class TestRules:
    GRADIENTS = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(3)).double()

    @pytest.mark.parametrize("rule", [michel.kept_heads, kwon.kept_heads])
    def test_budgets_are_exact_and_dense_layers_stay(self, rule) -> None:
        for num_kept in range(16):
            assert int(rule(self.GRADIENTS, num_kept).sum()) == num_kept
            kept = rule(self.GRADIENTS, num_kept, dense_layers=(1,))
            assert kept[1].all()
            assert int(kept.sum()) == max(num_kept, 5)

    def test_michel(self) -> None:
        expected = torch.zeros(3, 5).double()
        for layer, head in itertools.product(range(3), range(5)):
            expected[layer, head] = sum(abs(float(each[layer, head])) for each in self.GRADIENTS) / 7
        expected /= (expected**2).sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(michel.importance(self.GRADIENTS), expected)
        kept = michel.kept_heads(self.GRADIENTS, 6)
        assert expected[kept].min() > expected[~kept].max()
        scaled = self.GRADIENTS * torch.tensor([1.0, 100.0, 0.01])[:, None]  # layers are normalised
        assert torch.equal(michel.kept_heads(scaled, 6), kept)
        assert not michel.importance(torch.zeros(2, 1, 3)).any()

    def test_kwon_rearranges_downwards_to_where_no_exchange_helps(self) -> None:
        def loss(fisher: Tensor, kept: Tensor) -> float:
            return float((~kept).double() @ fisher @ (~kept).double())

        best_found = 0
        for seed in range(20):
            gradients = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(seed)).double()
            (fisher,) = kwon.fisher_information(gradients)
            brute = sum(torch.outer(g, g) for g in gradients[:, 0]) / 4
            torch.testing.assert_close(fisher, brute)
            start = highest(fisher.diagonal()[None], 3)[0]
            (kept,) = kwon.kept_heads(gradients, 3)
            masks = [
                torch.tensor([i in chosen for i in range(6)])
                for chosen in itertools.combinations(range(6), 3)
            ]
            reached = loss(fisher, kept)
            assert reached <= loss(fisher, start) + 1e-12
            neighbours = [mask for mask in masks if int((mask ^ kept).sum()) == 2]
            assert reached <= min(loss(fisher, mask) for mask in neighbours) + 1e-9
            best_found += reached <= min(loss(fisher, mask) for mask in masks) + 1e-9
        assert best_found >= 15

    def test_kwon_prunes_heads_that_cancel(self) -> None:
        """Two heads whose effects are opposite cost nothing together, which no diagonal can see."""
        gradients = torch.tensor([[[3.0, -3.0, 2.0, 2.0]]]).double()
        assert kwon.kept_heads(gradients, 2).tolist() == [[False, False, True, True]]
        assert michel.kept_heads(gradients, 2).tolist() == [[True, True, False, False]]


class TestMasks:
    @pytest.mark.parametrize("name", SPARSE)
    def test_all_heads_are_dense_attention_and_removal_restores(self, name: str) -> None:
        model = build(name)
        dense, modules = outputs(model), [id(module) for module in model.modules()]
        with prune_heads(model, gates_of(model), HeadPruningConfig(kept_share=1)) as handle:
            full = outputs(model)
            assert handle.stats.density.min() == 1
        with prune_heads(model, gates_of(model), HeadPruningConfig(kept_share=0.5)) as handle:
            assert not all(map(torch.equal, outputs(model), dense))
            assert handle.stats.density.mean() == 0.5
        assert [id(module) for module in model.modules()] == modules
        assert all(map(torch.equal, outputs(model), dense))
        if name.startswith("native"):
            assert all(map(torch.equal, full, dense))
        for found, expected in zip(full, dense, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["native-vggt", "native-pi3"])
    def test_masked_heads_are_columns_of_zeros(self, name: str) -> None:
        model = build(name)
        zeroed = copy.deepcopy(model)
        kept = torch.tensor([[True, False, True, False], [False, False, False, True]])
        for row, attn in zip(kept, find_backbone(zeroed).global_attentions(zeroed).values(), strict=True):
            attn.proj.weight.data *= row.repeat_interleave(attn.proj.in_features // 4)
        with apply_processors(
            model, {i: HeadMaskProcessor(row) for i, row in enumerate(kept.tolist())}
        ) as handle:
            found = outputs(model)
            assert torch.equal(handle.stats.density, kept.double())
        for ours, expected in zip(found, outputs(zeroed), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)

    def test_no_head_at_all(self) -> None:
        model = build("native-vggt")
        with prune_heads(model, gates_of(model), HeadPruningConfig(kept_share=0)) as handle:
            assert all(torch.isfinite(each).all() for each in outputs(model)[:-1])  # intrinsics: f may be inf
            assert handle.stats.density.max() == 0

    def test_the_nearest_number_of_heads(self) -> None:
        gates = gates_of(build("native-vggt"))
        counts = {
            share: int(kept_heads(gates, HeadPruningConfig("kwon", share)).sum()) for share in (0.3, 0.45)
        }
        assert counts == {0.3: 2, 0.45: 4}

    def test_what_does_not_fit(self) -> None:
        model, other = build("native-vggt"), build("native-pi3")
        with pytest.raises(ValueError, match="scores are for pi3 with"):
            prune_heads(model, gates_of(other), HeadPruningConfig())
        with pytest.raises(ValueError, match="dense_layers has 7, the gates have 2 global layers"):
            prune_heads(model, gates_of(model), HeadPruningConfig(dense_layers=(7,)))
        with (
            pytest.raises(ValueError, match="mask is for 3 heads, q has 4"),
            apply_processors(model, {0: HeadMaskProcessor([True] * 3)}),
        ):
            outputs(model)
        for wrong in (
            {"rule": "random"},
            {"kept_share": 1.5},
            {"kept_share": None},
            {"camera_weight": -1},
            {"dense_layers": (-1,)},  # would be the last one
        ):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                HeadPruningConfig(**wrong)
