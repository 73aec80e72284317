from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hess_plugin.models.layers import (
    Attention,
    Block,
    LayerScale,
    Mlp,
    apply_rope,
    at_least_float32,
    init_parameters,
    rope_angles,
)


def test_rope_angles_of_patch():
    """Patch (1, 2) of a 2 x 3 grid has position (2, 3); with D = 8 the frequencies are 1 and 1/10."""
    angles = rope_angles((2, 3), head_dim=8, num_special_tokens=2)
    assert angles.shape == (8, 8)
    assert angles.dtype == torch.float32
    torch.testing.assert_close(angles[-1], torch.tensor([2, 0.2, 2, 0.2, 3, 0.3, 3, 0.3]))
    assert not angles[:2].any()


def test_rope_turns_pairs():
    """With one quarter turn of the row, (a, b, c, d) in the first half become (-c, -d, a, b)."""
    angles = torch.tensor([[math.pi / 2] * 4 + [0.0] * 4])
    turned = apply_rope(torch.arange(1.0, 9.0).view(1, 1, 1, 8), angles)
    torch.testing.assert_close(turned.flatten(), torch.tensor([-3.0, -4, 1, 2, 5, 6, 7, 8]))


def test_rope_products_depend_on_the_offset_only():
    """The product of a query and a key is the same when both patches move together."""
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    at = rope_angles((7, 9), 16, num_special_tokens=0).view(7, 9, 16)

    def product(query: tuple[int, int], key: tuple[int, int]) -> float:
        turned = [apply_rope(t.view(1, 1, 1, 16), at[place][None]) for t, place in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum().item()

    assert product((0, 0), (2, 5)) == pytest.approx(product((4, 3), (6, 8)), abs=1e-5)
    assert product((0, 0), (2, 5)) != pytest.approx(product((0, 0), (5, 2)), abs=1e-2)


def test_rope_repeats_over_views():
    angles = rope_angles((2, 3), 16, num_special_tokens=5)
    t = torch.randn(2, 3, 4 * 11, 16)
    per_view = [apply_rope(view, angles) for view in t.split(11, dim=2)]
    assert torch.equal(apply_rope(t, angles), torch.cat(per_view, dim=2))


def test_attention_against_single_heads():
    """Each head computed alone from its rows of the fused weight, with the norms and RoPE on q and k."""
    dim, num_heads, head = 48, 3, 16
    attention = Attention(dim, num_heads, qk_norm=True, rope=True)
    nn.init.normal_(attention.q_norm.weight)
    x, pos = torch.randn(2, 2 * 7, dim), rope_angles((2, 3), head, num_special_tokens=1)
    outs = []
    for h in range(num_heads):
        rows = [slice(third * dim + h * head, third * dim + (h + 1) * head) for third in range(3)]
        q, k, v = (x @ attention.qkv.weight[r].T + attention.qkv.bias[r] for r in rows)
        q = attention.rope(attention.q_norm(q)[:, None], pos)[:, 0]
        k = attention.rope(attention.k_norm(k)[:, None], pos)[:, 0]
        outs.append(torch.softmax(q @ k.mT / head**0.5, dim=-1) @ v)
    torch.testing.assert_close(attention(x, pos), attention.proj(torch.cat(outs, dim=-1)))


def test_attention_without_extras():
    attention = Attention(32, 4)
    assert attention.rope is None
    assert list(attention.state_dict()) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    assert attention(torch.randn(1, 5, 32)).shape == (1, 5, 32)


def test_block_layer_scale():
    """A scale of zero leaves the input; without scales there are no such keys."""
    x = torch.randn(2, 5, 32)
    scaled = Block(32, 4, norm_eps=1e-5, layer_scale_init=0.0)
    assert torch.equal(scaled(x), x)
    plain = Block(32, 4, norm_eps=1e-6, layer_scale_init=None)
    assert not any("ls" in key for key in plain.state_dict())
    assert plain.norm1.eps == plain.norm2.eps == 1e-6
    expected = x + plain.attn(plain.norm1(x))
    torch.testing.assert_close(plain(x), expected + plain.mlp(plain.norm2(expected)))


def test_mlp_uses_the_exact_gelu():
    mlp = Mlp(1, 1)
    for linear in (mlp.fc1, mlp.fc2):
        nn.init.ones_(linear.weight)
        nn.init.zeros_(linear.bias)
    exact = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert mlp(torch.ones(1)).item() == pytest.approx(exact, abs=1e-7)  # the tanh form gives 0.84119


def test_at_least_float32():
    dtypes = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
    for given, expected in dtypes.items():
        assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected


@pytest.mark.parametrize(
    ("module", "std"),
    [(nn.Linear(64, 64), 0.02), (nn.Conv2d(16, 64, 3, bias=False), (3 * 16 * 9) ** -0.5)],
    ids=["linear", "convolution"],
)
def test_initial_weights(module, std):
    nn.init.constant_(module.weight, 7.0)
    init_parameters(module)
    assert module.weight.std().item() == pytest.approx(std, rel=0.1)
    if module.bias is not None:
        assert not module.bias.any()


def test_initial_values_of_scales_and_tokens():
    scale = LayerScale(4, 0.1)
    nn.init.zeros_(scale.gamma)
    init_parameters(scale)
    assert scale.gamma.tolist() == pytest.approx([0.1] * 4)
    tokens = nn.Module()
    tokens.token = nn.Parameter(torch.zeros(1, 1000))
    init_parameters(tokens)
    assert tokens.token.std().item() == pytest.approx(0.02, rel=0.1)


def test_rope_in_bfloat16_is_no_coarser_than_bfloat16() -> None:
    """Of a grid as large as a photo's: angles up to 37, which bfloat16 holds to 0.125."""
    pos = rope_angles((28, 37), head_dim=64, num_special_tokens=5)
    t = torch.randn(1, 2, len(pos), 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    error = (apply_rope(t, pos).double() - apply_rope(t.double(), pos)).abs()
    before = (apply_rope(t, pos.bfloat16().float()).double() - apply_rope(t.double(), pos)).abs()
    # Three roundings: of sine and cosine, of both products, and of their sum.
    assert error.max() <= 3 * torch.finfo(torch.bfloat16).eps * t.abs().max()
    assert error.max() < 0.2 * before.max()
    assert error.mean() < 0.6 * before.mean()
