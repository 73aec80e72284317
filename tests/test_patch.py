"""Sparse attention goes into a model, says what it did, and comes out again without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import TINY_MODELS
from patching import UNIFORM, attentions, build, patched
from sidecars import images, outputs, same, scores_of, sparse
from torch import Tensor, nn

from hess_plugin.attention import HeSSAttention
from hess_plugin.backbones import find_backbone
from hess_plugin.config import HeSSConfig
from hess_plugin.patch import HeSSHandle, apply_hess
from hess_plugin.scores import HeadScores


@pytest.fixture(params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


class TestApply:
    def test_changes_outputs_and_no_key(self, model: nn.Module) -> None:
        keys, dense = list(model.state_dict()), outputs(model)
        parameters = [id(parameter) for parameter in model.parameters()]
        handle = apply_hess(model, scores_of(model), sparse())
        assert list(model.state_dict()) == keys
        assert [id(parameter) for parameter in model.parameters()] == parameters
        assert not same(outputs(model), dense)
        assert model.hess is handle
        assert all(isinstance(attn, HeSSAttention) for attn in attentions(model))
        assert not any(isinstance(child, HeSSHandle) for child in model.modules())

    def test_only_global_attention_is_replaced(self, model: nn.Module) -> None:
        patched(model)
        names = {name for name, module in model.named_modules() if isinstance(module, HeSSAttention)}
        assert names == set(find_backbone(model).global_attentions(model))

    @pytest.mark.parametrize("allocation", ["uniform", "hess", "reverse"])
    def test_full_density_is_dense_attention(self, model: nn.Module, allocation: Any) -> None:
        dense = outputs(model)
        config = HeSSConfig(
            allocation=allocation, sparse_ratio=0, cdf_threshold=0, q_block_size=4, kv_block_size=4
        )
        handle = apply_hess(model, scores_of(model), config)
        for found, expected in zip(outputs(model), dense, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert handle.stats.sparsity.max() == 0

    def test_each_layer_gets_its_own_weights(self, model: nn.Module) -> None:
        scores = scores_of(model)
        for camera_weight in (None, 0, 0.8):
            config = HeSSConfig(camera_weight=camera_weight)
            with apply_hess(model, scores, config):
                found = [attn.processor.head_weights for attn in attentions(model)]
            assert found == [tuple(row) for row in scores.weights(camera_weight).tolist()]

    def test_projection_and_normalization_choose_the_weights(self, model: nn.Module) -> None:
        scores = scores_of(model, projections=("query", "key"))
        config = HeSSConfig(projection="key", normalization="log")
        with apply_hess(model, scores, config):
            found = [attn.processor.head_weights for attn in attentions(model)]
        assert found == [tuple(row) for row in scores.weights(None, "key", "log").tolist()]
        with pytest.raises(ValueError, match="no traces of the value projection"):
            apply_hess(model, scores, HeSSConfig(projection="value"))

    def test_sensitive_heads_keep_more(self, model: nn.Module) -> None:
        patched(model)
        outputs(model)
        order = model.hess.scores.weights().argsort(1)
        density = model.hess.stats.density.gather(1, order)
        assert (density.diff(dim=1) >= 0).all()
        assert (density[:, 0] < density[:, -1]).all()

    def test_dense_layers(self, model: nn.Module) -> None:
        config = HeSSConfig(
            allocation="uniform",
            sparse_ratio=0.5,
            cdf_threshold=0,
            q_block_size=4,
            kv_block_size=4,
            dense_layers=(1,),
        )
        handle = apply_hess(model, None, config)
        assert [isinstance(attn, HeSSAttention) for attn in attentions(model)] == [True, False]
        outputs(model)
        assert handle.stats.density[1].tolist() == [1.0] * 4
        assert handle.stats.density[0].max() < 1

    def test_images_by_name_without_batch_and_of_any_size(self, model: nn.Module) -> None:
        patched(model)
        backbone = find_backbone(model)
        photos = images(views=2, size=20)
        expected = outputs(model, photos)
        with torch.no_grad():
            named = model(**{_image_name(model): photos})
        assert same([named[key] for key in sorted(named) if isinstance(named[key], Tensor)], expected)
        if backbone.name == "vggt":
            assert same(outputs(model, photos[0]), expected)
        assert not same(outputs(model, images(views=5, size=12)), expected)
        assert same(outputs(model, photos), expected)

    def test_batch_of_two(self, model: nn.Module) -> None:
        patched(model)
        pair = torch.cat([images(), images().flip(-1)])
        alone = [outputs(model, pair[i : i + 1]) for i in range(2)]
        for both, first, second in zip(outputs(model, pair), *alone, strict=True):
            torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-4, atol=1e-5)

    def test_vggt_aggregator_called_on_its_own(self) -> None:
        """Users of VGGT run the aggregator first and the heads they need after it."""
        model = patched(build("vggt"))
        tokens, start = model.aggregator(images())
        assert (tokens[-1].shape, start) == ((1, 3, 21, 64), 5)
        assert model.hess.stats.sparsity.min() > 0


def _image_name(model: nn.Module) -> str:
    return "imgs" if find_backbone(model).name == "pi3" else "images"


class TestStats:
    def test_measured_in_the_last_forward(self, model: nn.Module) -> None:
        handle = apply_hess(model, None, UNIFORM)
        with pytest.raises(RuntimeError, match=r"no forward pass has been measured yet; run model\(images\)"):
            _ = handle.stats
        outputs(model, images(views=3, size=16))  # 48 patches: 12 x 12 blocks, 6 kept per row
        stats = handle.stats
        assert (stats.density.dtype, stats.density.device.type, tuple(stats.density.shape)) == (
            torch.float64,
            "cpu",
            (2, 4),
        )
        assert torch.equal(stats.density, torch.full((2, 4), 0.5, dtype=torch.float64))
        assert torch.equal(stats.sparsity, 1 - stats.density)
        assert stats.summary() == "sparsity 0.500 (heads 0.500 to 0.500, 2 layers x 4 heads)"
        outputs(model, images(views=1, size=12))  # 9 patches: 3 x 3 blocks, 1 kept per row
        assert handle.stats.density.allclose(torch.tensor(1 / 3, dtype=torch.float64))
        assert stats.density.max() == 0.5  # what was read before does not change

    def test_mean_over_the_batch(self, model: nn.Module) -> None:
        config = HeSSConfig(
            allocation="uniform", sparse_ratio=1, cdf_threshold=0.7, q_block_size=4, kv_block_size=4
        )
        handle = apply_hess(model, None, config)
        pair = torch.cat([images(), images() ** 3])
        alone = []
        for item in pair:
            outputs(model, item[None])
            alone.append(handle.stats.density)
        outputs(model, pair)
        torch.testing.assert_close(handle.stats.density, (alone[0] + alone[1]) / 2)

    def test_half_of_a_forward_is_not_a_measurement(self, model: nn.Module) -> None:
        handle = apply_hess(model, None, UNIFORM)
        attentions(model)[1].register_forward_pre_hook(_raise)
        with pytest.raises(KeyError, match="stop"):
            model(images())
        with pytest.raises(RuntimeError, match="no forward pass has been measured"):
            _ = handle.stats


def _raise(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise KeyError("stop")


class TestSave:
    def test_sidecar_lies_under_the_name_of_the_calibration_set(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        scores = scores_of(model, dataset="co3d v2/dev")
        handle = apply_hess(model, scores, sparse())
        handle.save_pretrained(tmp_path)
        assert [path.name for path in tmp_path.glob("hess/*")] == ["co3d-v2-dev"]
        loaded = HeadScores.load(tmp_path / "hess" / "co3d-v2-dev")
        assert torch.equal(loaded.weights(), scores.weights())
        handle.remove()
        assert apply_hess(model, loaded, sparse()).scores is loaded

    def test_nothing_to_save_without_scores(self, model: nn.Module, tmp_path: Path) -> None:
        apply_hess(model, None, UNIFORM).save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []
