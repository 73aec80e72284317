"""q, k and v as each family's attention computes them, and the weights they come from."""

from __future__ import annotations

import copy

import pytest
import torch
from doubles import TinyPi3, TinyVGGT
from doubles_views import TinyDepthAnything3
from families import build, captured_calls
from torch import Tensor, nn
from torch.nn import functional as F

from hess_plugin.backbones import find_backbone
from hess_plugin.config import PROJECTIONS


class TestProjectQkv:
    @pytest.mark.parametrize("autocast", [False, True])
    def test_attention_over_the_result_is_the_original(self, model: nn.Module, autocast: bool) -> None:
        backbone = find_backbone(model)
        if backbone.dense_only is not None:
            pytest.skip("runs dense only: its masked attention is never computed from q, k and v alone")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for attn, args, kwargs, expected in captured_calls(model):
                q, k, v = backbone.project_qkv(attn, *args, **kwargs)
                assert q.shape == k.shape == v.shape == (1, 4, expected.shape[1], 8)
                assert q.dtype == k.dtype == v.dtype == (torch.bfloat16 if autocast else torch.float32)
                out = attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                assert torch.equal(out, expected)

    @pytest.mark.parametrize(
        ("build_model", "dtype"),
        [(TinyVGGT, torch.float32), (TinyDepthAnything3, torch.float32), (TinyPi3, torch.bfloat16)],
    )
    def test_dtype_in_which_rope_runs(self, build_model: type[nn.Module], dtype: torch.dtype) -> None:
        """VGGT rotates what the norms return (float32 under CUDA autocast), π³ casts to v's dtype first."""
        model = build_model().bfloat16()
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
        x, positions = torch.randn(1, 6, 32, dtype=torch.bfloat16), torch.zeros(1, 6, 2)
        result = backbone.project_qkv(attn, x, pos=positions)
        assert seen == [dtype, dtype]
        assert {part.dtype for part in result} == {torch.bfloat16}

    @pytest.mark.parametrize(
        ("name", "argument", "said"),
        [
            ("pi3", "attn_bias", "attn_bias is given"),
            ("pi3x", "attn_bias", "attn_bias is given"),
            ("vggt_omega", "attn_bias", "attn_bias or rope is given"),
            ("vggt_omega", "rope", "attn_bias or rope is given"),
            ("depth_anything_3", "attn_mask", "attn_mask is given"),
        ],
    )
    def test_what_sparse_attention_cannot_take_is_refused(self, name: str, argument: str, said: str) -> None:
        model = build(name)
        backbone = find_backbone(model)
        attn = next(iter(backbone.global_attentions(model).values()))
        with pytest.raises(ValueError, match=said):
            backbone.project_qkv(attn, torch.zeros(1, 6, 32), **{argument: torch.zeros(6, 6)})

    def test_masked_bias_of_the_keys_is_read_through_the_module(self) -> None:
        model = build("vggt_omega")
        attn = model.aggregator.inter_frame_blocks[0].attn
        attn.q_norm = attn.k_norm = nn.Identity()
        with torch.no_grad():
            attn.qkv.bias.fill_(1)
        q, k, v = find_backbone(model).project_qkv(attn, torch.zeros(1, 2, 32))
        assert [x.unique().item() for x in (q, k, v)] == [1, 0, 1]

    def test_position_encoding_of_map_anything(self) -> None:
        """Off in the published models; where it is on, q and k are rotated before they are sharpened."""
        model = build("map_anything-scalable")
        attn, x = model.info_sharing.self_attention_blocks[0].attn, torch.randn(1, 6, 32)
        q, k, _ = find_backbone(model).project_qkv(attn, x)
        attn.custom_positional_encoding = lambda t, positions: t + positions
        rotated_q, rotated_k, _ = find_backbone(model).project_qkv(attn, x, 2.0)
        torch.testing.assert_close(rotated_q, q + 2 * torch.tensor(6.0).log())
        torch.testing.assert_close(rotated_k, k + 2)


class TestProjectionWeight:
    def test_rows_of_each_head(self, model: nn.Module) -> None:
        model = copy.deepcopy(model)
        backbone = find_backbone(model)
        attn = next(iter(backbone.global_attentions(model).values()))
        attn.q_norm, attn.k_norm = nn.Identity(), nn.Identity()
        attn.use_scalable_softmax = attn.use_entropy_scaling = False
        if isinstance(getattr(attn, "rope", None), nn.Module):
            attn.rope = _NoRotation()
        elif hasattr(attn, "rope"):
            attn.rope = _NoRotation().forward
        with torch.no_grad():
            attn.qkv.bias.zero_()  # one family masks a part of it
        x = torch.randn(2, 6, 32)
        heads, dim = backbone.num_heads(attn), backbone.head_dim(attn)
        assert (heads, dim) == (4, 8)
        for projection, projected in zip(PROJECTIONS, backbone.project_qkv(attn, x), strict=True):
            weight, rows = backbone.projection_weight(attn, projection)
            assert weight is attn.qkv.weight
            for head in range(heads):
                expected = F.linear(x, weight[rows][head * dim : (head + 1) * dim])
                torch.testing.assert_close(projected[:, head], expected)


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
