"""Which family a model is taken for, its global attentions and the layout of its tokens."""

from __future__ import annotations

import pytest
import torch
from doubles import TinyPi3, TinyVGGT
from doubles_family import TinyStreamVGGT, TinyVGGTOmega
from doubles_views import TinyDepthAnything3, TinyMapAnything
from families import MODELS, build, captured_calls, family, images, layout_of
from torch import Tensor, nn

from hess_plugin.backbones import BACKBONES, TokenLayout, find_backbone

GLOBAL_NAMES = {
    "vggt": ["aggregator.global_blocks.0.attn", "aggregator.global_blocks.1.attn"],
    "pi3": ["decoder.1.attn", "decoder.3.attn"],
    "pi3x": ["decoder.1.attn", "decoder.3.attn"],
    "vggt_omega": [f"aggregator.inter_frame_blocks.{i}.attn" for i in (0, 1, 3)],
    "streamvggt": ["aggregator.global_blocks.0.attn", "aggregator.global_blocks.1.attn"],
    "depth_anything_3": [f"model.backbone.pretrained.blocks.{i}.attn" for i in (3, 5)],
    "depth_anything_3-nested": [f"model.da3.backbone.pretrained.blocks.{i}.attn" for i in (3, 5)],
    "map_anything": [f"info_sharing.self_attention_blocks.{i}.attn" for i in (0, 2)],
}
# Of three views with 3 x 5 patches.
VGGT_LAYOUT = TokenLayout(3, 5, (3, 5))
LAYOUTS = {
    "vggt_omega": TokenLayout(3, 17, (3, 5)),
    "depth_anything_3": TokenLayout(3, 1, (3, 5)),
    "map_anything": TokenLayout(3, 1, (3, 5), special_last=True, num_trailing_tokens=1),
    "map_anything-v1": TokenLayout(3, 0, (3, 5), special_last=True, num_trailing_tokens=1),
}


class TestFindBackbone:
    def test_one_family_matches(self, name: str, model: nn.Module) -> None:
        assert [backbone.name for backbone in BACKBONES if backbone.matches(model)] == [family(name)]
        assert find_backbone(model).name == family(name)

    def test_names_are_different(self) -> None:
        assert len({backbone.name for backbone in BACKBONES}) == len(BACKBONES)

    def test_every_family_has_a_double(self) -> None:
        assert {family(name) for name in MODELS} == {backbone.name for backbone in BACKBONES}

    def test_unknown_family_lists_the_known_and_how_to_add_one(self) -> None:
        with pytest.raises(ValueError, match="no backbone matches `Linear`; known: vggt, pi3") as error:
            find_backbone(nn.Linear(2, 2))
        assert all(f"\n  {step}. " in str(error.value) for step in range(1, 7))

    @pytest.mark.parametrize("part", ["qkv", "proj", "q_norm", "num_heads"])
    def test_a_changed_tree_is_another_family(self, name: str, part: str) -> None:
        model = build(name)
        delattr(next(iter(find_backbone(model).global_attentions(model).values())), part)
        with pytest.raises(ValueError, match="no backbone matches"):
            find_backbone(model)

    @pytest.mark.parametrize(
        ("build_model", "path"),
        [
            (TinyVGGT, "aggregator.global_blocks"),
            (TinyStreamVGGT, "aggregator.global_blocks"),
            (TinyPi3, "decoder"),
            (TinyVGGTOmega, "aggregator.inter_frame_blocks"),
            (TinyDepthAnything3, "model.backbone.pretrained.blocks"),
            (TinyMapAnything, "info_sharing.self_attention_blocks"),
        ],
    )
    def test_no_global_block_is_no_match(self, build_model: type[nn.Module], path: str) -> None:
        model = build_model()
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.ModuleList())
        with pytest.raises(ValueError, match="no backbone matches"):
            find_backbone(model)

    def test_a_mask_in_some_layers_is_no_known_family(self) -> None:
        """VGGT's attentions take none, StreamVGGT's all do; to drop a mask would be wrong without a word."""
        model = TinyVGGT()
        attn = model.aggregator.global_blocks[0].attn

        class Masked(type(attn)):
            def forward(self, x: Tensor, pos: Tensor, attn_mask: Tensor | None = None) -> Tensor:
                return super().forward(x, pos)

        attn.__class__ = Masked
        with pytest.raises(ValueError, match="no backbone matches `TinyVGGT`"):
            find_backbone(model)

    @pytest.mark.parametrize("model", [TinyDepthAnything3("da3mono-tiny"), TinyDepthAnything3().model])
    def test_depth_anything_without_global_attention_or_api(self, model: nn.Module) -> None:
        """The monocular network has the same tree; the network inside has another one than the API object."""
        with pytest.raises(ValueError, match="no backbone matches"):
            find_backbone(model)


class TestGlobalAttentions:
    def test_in_layer_order_and_only_global(self, name: str, model: nn.Module) -> None:
        found = find_backbone(model).global_attentions(model)
        assert list(found) == GLOBAL_NAMES.get(name, GLOBAL_NAMES[family(name)])
        for path, attn in found.items():
            assert model.get_submodule(path) is attn

    def test_they_are_called_with_all_views(self, name: str, model: nn.Module) -> None:
        layout = layout_of(model)
        assert layout == LAYOUTS.get(name, LAYOUTS.get(family(name), VGGT_LAYOUT))
        calls = captured_calls(model)
        assert [call[0] for call in calls] == list(find_backbone(model).global_attentions(model).values())
        assert {tuple(call[3].shape) for call in calls} == {(1, layout.num_tokens, 32)}


class TestTokenLayout:
    @pytest.mark.parametrize("patch", [4, 7])
    def test_patch_size_from_the_encoder(self, patch: int) -> None:
        for build_model in (TinyVGGT, TinyPi3, TinyVGGTOmega, TinyStreamVGGT):
            model = build_model(patch_size=patch)
            backbone = find_backbone(model)
            assert backbone.patch_size(model) == (patch, patch)
            layout = backbone.token_layout(
                backbone.image_module(model), (), {backbone.image_argument: torch.zeros(2, 3, 28, 56)}
            )
            assert layout.grid == (28 // patch, 56 // patch)

    def test_special_tokens_from_the_parameters(self) -> None:
        for build_model, expected in ((TinyVGGT, 8), (TinyVGGTOmega, 8), (TinyStreamVGGT, 8)):
            model = build_model().eval()
            model.aggregator.register_token = nn.Parameter(torch.zeros(1, 2, 7, 32))
            backbone = find_backbone(model)
            module = backbone.image_module(model)
            assert backbone.token_layout(module, (images(),), {}).num_special_tokens == expected
        model = TinyPi3()
        model.register_token = nn.Parameter(torch.zeros(1, 1, 3, 32))
        assert find_backbone(model).token_layout(model, (images(),), {}).num_special_tokens == 3
        model = TinyDepthAnything3()
        model.model.backbone.pretrained.register_tokens = nn.Parameter(torch.zeros(1, 4, 32))
        assert find_backbone(model).token_layout(model.model, (images(),), {}).num_special_tokens == 5

    def test_images_positional_or_by_name(self) -> None:
        given = images()
        for backbone in BACKBONES:
            if backbone.name != "map_anything":  # whose module is given features
                assert backbone.images((given, None), {}) is given
                assert backbone.images((), {backbone.image_argument: given}) is given

    @pytest.mark.parametrize("shape", [(2, 3, 8, 12), (5, 2, 3, 8, 12)])
    def test_counts(self, shape: tuple[int, ...]) -> None:
        layout = TokenLayout.from_images(torch.zeros(shape), num_special_tokens=1, patch_size=(4, 6))
        assert (layout.num_views, layout.grid) == (2, (2, 2))
        assert (layout.patches_per_view, layout.tokens_per_view, layout.num_tokens) == (4, 5, 10)

    @pytest.mark.parametrize(
        ("given", "said"), [(torch.zeros(3, 8, 8), r"shape \(3, 8, 8\)"), (None, "NoneType"), ([1], "list")]
    )
    def test_bad_input(self, given: object, said: str) -> None:
        with pytest.raises(ValueError, match=f"images must be a tensor .* got {said}"):
            TokenLayout.from_images(given, 5, (14, 14))  # type: ignore[arg-type]
