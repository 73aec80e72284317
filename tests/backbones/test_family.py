"""Sparse attention and calibration in the further families, over their doubles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from doubles_family import FAMILY_MODELS, TinyPi3X, TinyStreamVGGT, TinyVGGTOmega
from doubles_views import TinyDepthAnything3, TinyMapAnything
from families import build, images
from patching import tree
from sidecars import same, scores_of, sparse
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hess_plugin.attention import HeSSAttention
from hess_plugin.backbones import find_backbone
from hess_plugin.calibration.fisher import scene_traces
from hess_plugin.config import CalibrationConfig, HeSSConfig
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.patch import apply_hess

SPARSE_MODELS = [name for name in FAMILY_MODELS if name != "streamvggt"]
EVERYTHING = HeSSConfig(sparse_ratio=0.0, q_block_size=4, kv_block_size=4)


@pytest.fixture(params=SPARSE_MODELS)
def sparse_model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@torch.no_grad()
def outputs(model: nn.Module, photos: Tensor | None = None) -> list[Tensor]:
    """All tensors that the model predicts, in a fixed order."""
    predicted = find_backbone(model).predict(model, images() if photos is None else photos)
    return [leaf for leaf in tree_leaves(predicted) if isinstance(leaf, Tensor)]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class TestSparse:
    def test_density_one_is_the_dense_model(self, sparse_model: nn.Module) -> None:
        dense = outputs(sparse_model)
        with apply_hess(sparse_model, scores_of(sparse_model), EVERYTHING) as handle:
            close(outputs(sparse_model), dense)
            assert (handle.stats.density == 1).all()
        below = replace(EVERYTHING, dense_below_tokens=10_000)
        with apply_hess(sparse_model, scores_of(sparse_model), below):
            assert same(outputs(sparse_model), dense)

    def test_blocks_are_skipped_and_nothing_is_left_behind(self, sparse_model: nn.Module) -> None:
        dense, before, keys = outputs(sparse_model), tree(sparse_model), list(sparse_model.state_dict())
        with apply_hess(sparse_model, scores_of(sparse_model), sparse()) as handle:
            assert list(sparse_model.state_dict()) == keys
            assert not same(outputs(sparse_model), dense)
            assert (handle.stats.sparsity > 0.3).all()
        assert tree(sparse_model) == before
        assert same(outputs(sparse_model), dense)

    def test_items_of_a_batch_do_not_meet(self, sparse_model: nn.Module) -> None:
        two = torch.cat([images(), 1 - images()])
        apply_hess(sparse_model, scores_of(sparse_model), sparse())
        both = outputs(sparse_model, two)
        alone = [outputs(sparse_model, item[None]) for item in two]
        close(both, [torch.cat(pair) for pair in zip(*alone, strict=True)])

    def test_images_that_are_not_finite_are_refused(self, sparse_model: nn.Module) -> None:
        apply_hess(sparse_model, scores_of(sparse_model), sparse())
        with pytest.raises(ValueError, match="contain NaN or infinity"):
            outputs(sparse_model, torch.full((1, 3, 3, 12, 20), torch.nan))


class TestCalibration:
    @pytest.mark.parametrize("name", FAMILY_MODELS)
    def test_two_scenes_give_every_head_a_trace(self, name: str) -> None:
        model = build(name)
        config = CalibrationConfig(
            num_scenes=2, num_views=3, inlier_radius=2.0, icp=False, min_fitness=0.0, point_source="depth"
        )
        found = []
        for seed in (1, 2):
            scene = synthetic_scene(seed, 3, image_size=(12, 20))
            found.append(scene_traces(model, scene, config).traces)
        layers = len(find_backbone(model).global_attentions(model))
        for kind in ("camera", "points"):
            traces = torch.stack([each[kind] for each in found])
            assert traces.shape == (2, layers, 4)
            assert traces.isfinite().all()
            assert (traces > 0).all()
            assert not torch.equal(traces[0], traces[1])


class TestDepthAnything3:
    @pytest.mark.parametrize("name", ["da3-tiny", "da3nested-tiny"])
    def test_public_forward_is_sparse_too(self, name: str) -> None:
        torch.manual_seed(0)
        model = TinyDepthAnything3(name).eval()
        with apply_hess(model, scores_of(model), sparse()) as handle:
            depth = model(images())["depth"]
            assert (handle.stats.sparsity > 0.3).all()
        assert not torch.equal(depth, model(images())["depth"])

    def test_a_mask_is_refused(self) -> None:
        model = build("depth_anything_3")
        blocks = model.model.backbone.pretrained.blocks
        apply_hess(model, scores_of(model), sparse())
        outputs(model)
        x, mask = torch.zeros(1, 48, 32), torch.ones(48, 48)
        blocks[1].attn(x, attn_mask=mask)  # attends within views and stays as it was
        with pytest.raises(ValueError, match="attn_mask is given"):
            blocks[3].attn(x, attn_mask=mask)


class TestMapAnything:
    def test_first_release_without_a_token_in_each_view(self) -> None:
        """All patches of all views, and one trailing token: the layout follows what the module is given."""
        model = TinyMapAnything(token_per_view=False).eval()
        apply_hess(model, scores_of(model), sparse())
        outputs(model)
        attn = model.info_sharing.self_attention_blocks[0].attn
        assert isinstance(attn, HeSSAttention)
        assert attn.recorder.layout.num_tokens == 3 * 15 + 1

    @pytest.mark.parametrize("name", ["map_anything-scalable", "map_anything-entropy"])
    def test_sharpening_counts_all_tokens(self, name: str) -> None:
        """The factor is in q before blocks are chosen, and is the dense model's whatever is skipped."""
        model = build(name)
        attn = model.info_sharing.self_attention_blocks[0].attn
        plain = build("map_anything").info_sharing.self_attention_blocks[0].attn
        plain.load_state_dict(attn.state_dict())
        backbone, x = find_backbone(model), torch.randn(1, 49, 32)
        ratio = backbone.project_qkv(attn, x)[0] / backbone.project_qkv(plain, x)[0]
        log_count = torch.tensor(49.0).log()
        scaled = {"map_anything-scalable": log_count}
        expected = scaled.get(name, (1.4 * log_count / torch.tensor(444.0).log()).sqrt())
        torch.testing.assert_close(ratio, expected.expand_as(ratio))


def test_pi3x_pose_attention_stays_dense() -> None:
    torch.manual_seed(0)
    model = TinyPi3X().eval()
    poses = torch.eye(4).expand(1, 3, 4, 4)
    injected = model.pose_inject_blk[0].attn
    with torch.no_grad():
        dense = model(images(), poses=poses)["points"]
        with apply_hess(model, scores_of(model), EVERYTHING):
            assert model.pose_inject_blk[0].attn is injected
            torch.testing.assert_close(model(images(), poses=poses)["points"], dense, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(images())["points"], dense)


def test_omega_attention_over_special_tokens_stays_dense() -> None:
    model = TinyVGGTOmega().eval()
    blocks = model.aggregator.inter_frame_blocks
    originals = [block.attn for block in blocks]
    with apply_hess(model, scores_of(model), sparse()):
        kept = [block.attn is attn for block, attn in zip(blocks, originals, strict=True)]
    assert kept == [False, False, True, False]


def test_streamvggt_is_refused_before_anything_is_changed() -> None:
    model = TinyStreamVGGT().eval()
    before = tree(model)
    with pytest.raises(ValueError, match=r"^streamvggt cannot have sparse attention: .*can be calibrated"):
        apply_hess(model, scores_of(model), sparse())
    assert tree(model) == before
