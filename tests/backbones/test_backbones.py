"""What each model family says about its models, over the doubles of the originals and the native classes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from doubles import TINY_MODELS, TinyPi3, TinyVGGT
from torch import Tensor, nn
from torch.nn import functional as F

from hess_plugin.backbones import BACKBONES, TokenLayout, find_backbone
from hess_plugin.geometry.cameras import decode_pose, invert_rigid, unproject_depth

GLOBAL_NAMES = {
    "vggt": ["aggregator.global_blocks.0.attn", "aggregator.global_blocks.1.attn"],
    "pi3": ["decoder.1.attn", "decoder.3.attn"],
}


@pytest.fixture(scope="module", params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return TINY_MODELS[request.param]().eval()


def images(views: int = 3, height: int = 12, width: int = 20, batch: int = 1) -> Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(1))


def captured_calls(model: nn.Module) -> list[tuple[nn.Module, tuple, dict[str, Any], Tensor]]:
    """Every global attention's call in one forward: module, arguments, output."""
    calls: list[tuple[nn.Module, tuple, dict[str, Any], Tensor]] = []
    handles = [
        attn.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
        for attn in find_backbone(model).global_attentions(model).values()
    ]
    model(images())
    for handle in handles:
        handle.remove()
    return calls


class TestFindBackbone:
    def test_by_structure(self, model: nn.Module) -> None:
        assert find_backbone(model).name == ("pi3" if "Pi3" in type(model).__name__ else "vggt")

    def test_names_are_different(self) -> None:
        assert len({backbone.name for backbone in BACKBONES}) == len(BACKBONES)

    def test_unknown_family_lists_the_known_and_how_to_add_one(self) -> None:
        with pytest.raises(ValueError, match="no backbone matches `Linear`; known: vggt, pi3") as error:
            find_backbone(nn.Linear(2, 2))
        assert all(f"\n  {step}. " in str(error.value) for step in range(1, 7))

    @pytest.mark.parametrize("name", TINY_MODELS)
    def test_a_changed_tree_is_another_family(self, name: str) -> None:
        model = TINY_MODELS[name]()
        backbone = find_backbone(model)
        attn = next(iter(backbone.global_attentions(model).values()))
        del attn.qkv
        with pytest.raises(ValueError, match="no backbone matches"):
            find_backbone(model)

    def test_no_global_block_is_no_match(self) -> None:
        model = TinyVGGT()
        model.aggregator.global_blocks = nn.ModuleList()
        with pytest.raises(ValueError, match="no backbone matches"):
            find_backbone(model)

    def test_masked_global_attention_is_refused(self) -> None:
        """StreamVGGT has VGGT's tree and a causal mask that sparse attention would drop."""
        model = TinyVGGT()
        attn = model.aggregator.global_blocks[0].attn

        class Masked(type(attn)):
            def forward(self, x: Tensor, pos: Tensor, attn_mask: Tensor | None = None) -> Tensor:
                return super().forward(x, pos)

        attn.__class__ = Masked
        with pytest.raises(ValueError, match="no backbone matches `TinyVGGT`"):
            find_backbone(model)


class TestGlobalAttentions:
    def test_in_layer_order_and_only_global(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        found = backbone.global_attentions(model)
        assert list(found) == GLOBAL_NAMES[backbone.name]
        for name, attn in found.items():
            assert model.get_submodule(name) is attn

    def test_they_are_called_with_all_views(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        layout = TokenLayout.from_images(
            images(), backbone.num_special_tokens(model), backbone.patch_size(model)
        )
        assert layout == TokenLayout(3, 5, (3, 5))
        calls = captured_calls(model)
        assert [call[0] for call in calls] == list(backbone.global_attentions(model).values())
        assert {tuple(call[3].shape) for call in calls} == {(1, layout.num_tokens, 32)}


class TestTokenLayout:
    @pytest.mark.parametrize("patch", [4, 7])
    def test_patch_size_from_the_encoder(self, patch: int) -> None:
        for build in (TinyVGGT, TinyPi3):
            model = build(patch_size=patch)
            assert find_backbone(model).patch_size(model) == (patch, patch)

    def test_special_tokens_from_the_parameters(self) -> None:
        model = TinyVGGT()
        model.aggregator.register_token = nn.Parameter(torch.zeros(1, 2, 7, 32))
        assert find_backbone(model).num_special_tokens(model) == 8
        model = TinyPi3()
        model.register_token = nn.Parameter(torch.zeros(1, 1, 3, 32))
        assert find_backbone(model).num_special_tokens(model) == 3

    def test_images_positional_or_by_name(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        given = images()
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


class TestProjectQkv:
    @pytest.mark.parametrize("autocast", [False, True])
    def test_attention_over_the_result_is_the_original(self, model: nn.Module, autocast: bool) -> None:
        backbone = find_backbone(model)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for attn, args, kwargs, expected in captured_calls(model):
                q, k, v = backbone.project_qkv(attn, *args, **kwargs)
                assert q.shape == k.shape == v.shape == (1, 4, expected.shape[1], 8)
                assert q.dtype == k.dtype == v.dtype == (torch.bfloat16 if autocast else torch.float32)
                out = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                assert torch.equal(out, expected)

    @pytest.mark.parametrize(("build", "dtype"), [(TinyVGGT, torch.float32), (TinyPi3, torch.bfloat16)])
    def test_dtype_in_which_rope_runs(self, build: type[nn.Module], dtype: torch.dtype) -> None:
        """VGGT rotates what the norms return (float32 under CUDA autocast), π³ casts to v's dtype first."""
        model = build().bfloat16()
        backbone = find_backbone(model)
        attn = next(iter(backbone.global_attentions(model).values()))
        seen = []

        class Float32(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float()

        class Spy(nn.Module):
            def forward(self, x: Tensor, positions: Tensor) -> Tensor:
                seen.append(x.dtype)
                return x

        attn.q_norm, attn.k_norm, attn.rope = Float32(), Float32(), Spy()
        result = backbone.project_qkv(attn, torch.randn(1, 6, 32, dtype=torch.bfloat16))
        assert seen == [dtype, dtype]
        assert {part.dtype for part in result} == {torch.bfloat16}

    def test_pi3_bias_is_refused(self) -> None:
        model = TinyPi3()
        attn = model.decoder[1].attn
        with pytest.raises(ValueError, match="attn_bias is given"):
            find_backbone(model).project_qkv(attn, torch.zeros(1, 6, 32), torch.zeros(6, 6))


class TestQueryWeight:
    def test_rows_of_each_head(self, model: nn.Module) -> None:
        model = copy.deepcopy(model)
        backbone = find_backbone(model)
        attn = next(iter(backbone.global_attentions(model).values()))
        attn.q_norm, attn.k_norm = nn.Identity(), nn.Identity()
        attn.rope = _NoRotation() if isinstance(attn.rope, nn.Module) else _NoRotation().forward
        x = torch.randn(2, 6, 32)
        q = backbone.project_qkv(attn, x)[0]
        weight, rows = backbone.query_weight(attn)
        assert weight is attn.qkv.weight
        heads, dim = backbone.num_heads(attn), backbone.head_dim(attn)
        assert (heads, dim) == (4, 8)
        for head in range(heads):
            own = slice(head * dim, (head + 1) * dim)
            expected = F.linear(x, weight[rows][own], attn.qkv.bias[rows][own])
            torch.testing.assert_close(q[:, head], expected)


class _NoRotation(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x


class TestFingerprint:
    def test_same_in_float32_and_bfloat16(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        low = copy.deepcopy(model).bfloat16()
        assert backbone.weights_sha256(low) == backbone.weights_sha256(model)

    def test_follows_global_attention_only(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        before, changed = backbone.weights_sha256(model), copy.deepcopy(model)
        ours = {id(attn.qkv.weight) for attn in backbone.global_attentions(changed).values()}
        with torch.no_grad():
            for parameter in changed.parameters():
                if id(parameter) not in ours:
                    parameter.add_(1)
            assert backbone.weights_sha256(changed) == before
            list(backbone.global_attentions(changed).values())[-1].qkv.weight[-1, -1] += 1
        assert backbone.weights_sha256(changed) != before

    def test_none_for_weights_that_are_not_there(self, model: nn.Module) -> None:
        assert find_backbone(model).weights_sha256(copy.deepcopy(model).to("meta")) is None


class TestReconstruct:
    def test_shapes_and_gradients(self, model: nn.Module) -> None:
        backbone = find_backbone(model)
        result = backbone.reconstruct(model(images(batch=2)))
        expected = {
            "extrinsics": (2, 3, 3, 4),
            "points": (2, 3, 12, 20, 3),
            "confidence": (2, 3, 12, 20),
            "depth": (2, 3, 12, 20),
        }
        weight = list(backbone.global_attentions(model).values())[-1].qkv.weight
        for name, shape in expected.items():
            field = getattr(result, name)
            assert (tuple(field.shape), field.dtype) == (shape, torch.float32)
            (gradient,) = torch.autograd.grad(field.square().sum(), weight, retain_graph=True)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0

    def test_vggt_by_hand(self) -> None:
        """A camera two units behind the origin, 90 degrees wide, sees a wall at z = 1, three units away."""
        pose = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, torch.pi / 2, torch.pi / 2])
        outputs = {
            "pose_enc": pose.expand(1, 1, 9),
            "depth": torch.full((1, 1, 2, 4, 1), 3.0),
            "depth_conf": torch.full((1, 1, 2, 4), 7.0),
            "world_points": torch.ones(1, 1, 2, 4, 3),
            "world_points_conf": torch.full((1, 1, 2, 4), 5.0),
        }
        backbone = BACKBONES[0]
        from_head = backbone.reconstruct(outputs)
        assert torch.equal(
            from_head.extrinsics[0, 0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])
        )
        assert (from_head.points.unique().item(), from_head.confidence.unique().item()) == (1, 5)
        from_depth = backbone.reconstruct(outputs, point_source="depth")
        # fx = 2, cx = 2, fy = 1, cy = 1: the first pixel looks at x/z = -1, y/z = -1
        torch.testing.assert_close(from_depth.points[0, 0, 0, 0], torch.tensor([-3.0, -3.0, 1.0]))
        assert from_depth.confidence.unique().item() == 7
        del outputs["depth"], outputs["depth_conf"]
        assert backbone.reconstruct(outputs).depth.unique().item() == 3  # z of (1, 1, 1) in the camera

    @pytest.mark.parametrize("missing", ["enable_point", "enable_depth"])
    def test_vggt_with_one_dense_head(self, missing: str) -> None:
        torch.manual_seed(0)
        model = TinyVGGT(**{missing: False}).eval()
        outputs = model(images())
        result = find_backbone(model).reconstruct(outputs)
        if missing == "enable_point":
            assert torch.equal(result.depth, outputs["depth"][..., 0])
            assert torch.equal(result.confidence, outputs["depth_conf"])
        else:
            assert torch.equal(result.points, outputs["world_points"])
            local = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
            z = local[..., 2] + result.extrinsics[:, :, 2, 3, None, None]
            torch.testing.assert_close(result.depth, z)

    def test_vggt_depth_points_project_to_their_pixels(self) -> None:
        torch.manual_seed(0)
        model = TinyVGGT().eval()
        outputs = model(images())
        result = BACKBONES[0].reconstruct(outputs, point_source="depth")
        extrinsics, intrinsics = decode_pose(outputs["pose_enc"], (12, 20))
        assert torch.equal(result.points, unproject_depth(result.depth, extrinsics, intrinsics))

    def test_pi3_poses_are_inverted(self) -> None:
        torch.manual_seed(0)
        model = TinyPi3().eval()
        outputs = model(images())
        result = BACKBONES[1].reconstruct(outputs)
        torch.testing.assert_close(result.extrinsics, invert_rigid(outputs["camera_poses"])[..., :3, :])
        local = torch.einsum("bvij,bvhwj->bvhwi", result.extrinsics[..., :3], result.points)
        local = local + result.extrinsics[:, :, None, None, :, 3]
        torch.testing.assert_close(local, outputs["local_points"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(local[..., 2], result.depth, atol=1e-5, rtol=1e-5)
        assert torch.equal(result.confidence, outputs["conf"][..., 0].sigmoid())

    def test_half_precision_outputs_give_float32_geometry(self, model: nn.Module) -> None:
        outputs = {
            key: value.bfloat16() for key, value in model(images()).items() if isinstance(value, Tensor)
        }
        result = find_backbone(model).reconstruct(outputs)
        assert {getattr(result, name).dtype for name in ("extrinsics", "points", "depth")} == {torch.float32}

    @pytest.mark.parametrize(
        ("change", "point_source", "message"),
        [
            ({"pose_enc": None}, "point_head", "needs pose_enc and one of world_points and depth"),
            ({"depth": None, "world_points": None}, "point_head", "needs pose_enc and one of"),
            ({"depth": None}, "depth", 'point_source is "depth" but the outputs have no depth'),
        ],
    )
    def test_vggt_bad_input(self, change: dict[str, None], point_source: Any, message: str) -> None:
        outputs = TinyVGGT().eval()(images()) | change
        with pytest.raises(ValueError, match=message):
            BACKBONES[0].reconstruct(outputs, point_source)
