"""The whole step of one layer: which blocks it selects, and what it computes with them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from layer_inputs import LAYOUTS, SMALL, WEIGHTS, block_map, is_special, patches, tokens
from torch import Tensor
from torch.nn import functional as F

from hess_plugin import processor as module
from hess_plugin.backbones.base import TokenLayout
from hess_plugin.config import HeSSConfig
from hess_plugin.processor import HeSSAttentionProcessor, _join, _split
from hess_plugin.sparsity import BlockPlan, plan


def expected_output(
    qkv: Tensor, layout: TokenLayout, weights: tuple[float, ...], config: HeSSConfig
) -> Tensor:
    """Masked dense attention over all tokens in their own order: special rows and columns fully visible."""
    q, k, v = qkv
    blocks = block_map(patches(q, layout), patches(k, layout), weights, config)
    number = (~is_special(layout)).cumsum(0) - 1  # index of a token among the patches
    rows, columns = number // config.q_block_size, number // config.kv_block_size
    special = is_special(layout)
    mask = blocks[:, :, rows.clamp(min=0)][..., columns.clamp(min=0)] | special[:, None] | special
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


# The output.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, sparse_ratio=0.0),
        replace(SMALL, sparse_ratio=0.0, allocation="uniform"),
        replace(SMALL, sparse_ratio=0.0, allocation="reverse", cdf_rule="sparse-vggt"),
        HeSSConfig(sparse_ratio=0.0),
        replace(SMALL, sparse_ratio=1.0, cdf_threshold=1.0),
    ],
)
def test_density_one_is_dense_attention(layout: TokenLayout, config: HeSSConfig) -> None:
    qkv = tokens(layout, batch=2, scale=1.0)
    processor = HeSSAttentionProcessor(WEIGHTS, config)
    torch.testing.assert_close(
        processor(*qkv, layout), F.scaled_dot_product_attention(*qkv), rtol=1e-12, atol=1e-12
    )
    assert (processor.kept_blocks == processor.num_blocks).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("allocation", ["hess", "uniform", "reverse"])
def test_output_is_masked_attention(layout: TokenLayout, allocation: str) -> None:
    config = replace(SMALL, sparse_ratio=0.7, cdf_threshold=0.5, allocation=allocation)
    qkv = tokens(layout, batch=2)
    processor = HeSSAttentionProcessor(WEIGHTS, config)
    out = processor(*qkv, layout)
    torch.testing.assert_close(out, expected_output(qkv, layout, WEIGHTS, config), rtol=1e-12, atol=1e-12)
    blocks = block_map(patches(qkv[0], layout), patches(qkv[1], layout), WEIGHTS, config)
    assert torch.equal(processor.kept_blocks, blocks.sum((-2, -1)))
    assert processor.num_blocks == blocks[0, 0].numel()
    if layout.num_views > 1:
        assert not blocks.all()


@pytest.mark.parametrize(
    "layout",  # patches % 64 != 0; the first, the last of the first view and the last token are looked at
    [
        TokenLayout(3, 5, (5, 7)),
        TokenLayout(13, 5, (3, 5)),
        TokenLayout(3, 1, (5, 7), special_last=True, num_trailing_tokens=1),
    ],
)
def test_special_tokens_are_attended_both_ways(layout: TokenLayout) -> None:
    config = HeSSConfig(
        sparse_ratio=1.0, cdf_threshold=0.0, allocation="uniform", q_block_size=32, kv_block_size=16
    )
    processor = HeSSAttentionProcessor(None, config)
    q, k, v = (x.requires_grad_() for x in tokens(layout, scale=1.0))
    out = processor(q, k, v, layout)
    special = is_special(layout)
    for query in (0, layout.tokens_per_view - 1, layout.num_tokens - 1):
        # v's gradient through one query is that query's attention to every token.
        attention = torch.autograd.grad(out[0, :, query].sum(), v, retain_graph=True)[0][0, ..., 0]
        assert (attention[:, special] > 0).all()
        patch_share = (attention[:, ~special] > 0).double().mean()
        assert patch_share == 1 if special[query] else 0 < patch_share < 0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_keys_as_the_public_code_has_them(layout: TokenLayout) -> None:
    """The patch keys, then the special ones, cut into blocks: those wholly beyond the patches are kept."""
    config = replace(SMALL, sparse_ratio=0.7, cdf_threshold=0.3, special_keys="sparse-vggt")
    q, k, v = tokens(layout, batch=2)
    out = HeSSAttentionProcessor(WEIGHTS, config)(q, k, v, layout)
    special = is_special(layout)
    order = torch.cat([(~special).nonzero()[:, 0], special.nonzero()[:, 0]])
    blocks = block_map(q[:, :, ~special], k[:, :, ~special], WEIGHTS, config)
    beyond = -(-layout.num_tokens // config.kv_block_size) - blocks.shape[-1]
    blocks = F.pad(blocks, (0, beyond), value=True).repeat_interleave(config.kv_block_size, -1)
    visible = torch.ones(2, 4, layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    patches = int((~special).sum())
    rows = blocks.repeat_interleave(config.q_block_size, -2)[:, :, :patches, : layout.num_tokens]
    visible[:, :, (~special).nonzero()[:, 0]] = rows[..., order.argsort()]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joining_undoes_splitting(layout: TokenLayout) -> None:
    x = torch.arange(2 * 3 * layout.num_tokens * 4).view(2, 3, layout.num_tokens, 4)
    special, patch = _split(x, layout)
    assert torch.equal(special, x[:, :, is_special(layout)])
    assert torch.equal(patch, x[:, :, ~is_special(layout)])
    assert torch.equal(_join(special, patch, layout), x)


def test_batch_is_its_items() -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout, batch=2)
    processor = HeSSAttentionProcessor(WEIGHTS, replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.6))
    both = processor(*qkv, layout)
    kept = processor.kept_blocks
    assert not torch.equal(kept[0], kept[1])
    for item in range(2):
        alone = processor(*qkv[:, item : item + 1], layout)
        torch.testing.assert_close(alone, both[item : item + 1], rtol=1e-12, atol=1e-12)
        assert torch.equal(processor.kept_blocks, kept[item : item + 1])


def test_dense_below_tokens() -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout, batch=2)
    config = replace(SMALL, sparse_ratio=0.9, cdf_threshold=0.0, dense_below_tokens=layout.num_tokens + 1)
    processor = HeSSAttentionProcessor(WEIGHTS, config)
    assert torch.equal(processor(*qkv, layout), F.scaled_dot_product_attention(*qkv))
    assert processor.num_blocks == 7 * 14
    assert processor.kept_blocks.tolist() == [[7 * 14] * 4] * 2
    processor = HeSSAttentionProcessor(WEIGHTS, replace(config, dense_below_tokens=layout.num_tokens))
    processor(*qkv, layout)
    assert (processor.kept_blocks < processor.num_blocks).any()


def test_dense_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout)
    config = replace(SMALL, sparse_ratio=0.9, cdf_threshold=0.0, dense_below_tokens="auto")
    processor = HeSSAttentionProcessor(WEIGHTS, config)
    processor(*qkv, layout)
    assert (processor.kept_blocks < processor.num_blocks).all()  # on a CPU always sparse
    for least, dense in ((layout.num_tokens, False), (layout.num_tokens + 1, True)):
        monkeypatch.setattr(module, "dense_below_tokens", lambda device, least=least: least)
        processor(*qkv, layout)
        assert bool((processor.kept_blocks == processor.num_blocks).all()) == dense


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout, scale=1.0).to(dtype)
    config = replace(SMALL, sparse_ratio=0.0)
    truth = F.scaled_dot_product_attention(*qkv.double())
    allowed = (F.scaled_dot_product_attention(*qkv).double() - truth).abs().max()
    out = HeSSAttentionProcessor(WEIGHTS, config)(*qkv, layout)
    assert out.dtype == dtype
    assert (out.double() - truth).abs().max() <= 2 * allowed


def test_autocast_takes_mixed_dtypes() -> None:
    layout = TokenLayout(3, 5, (5, 7))
    q, k, v = tokens(layout).float()
    processor = HeSSAttentionProcessor(WEIGHTS, replace(SMALL, sparse_ratio=0.7, cdf_threshold=0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = processor(q, k, v.bfloat16(), layout)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, processor(q.bfloat16(), k.bfloat16(), v.bfloat16(), layout))


def test_gradients_flow_through_the_selected_blocks() -> None:
    layout = TokenLayout(2, 1, (4, 4))
    qkv = tokens(layout, scale=1.0)
    config = replace(SMALL, sparse_ratio=0.5, cdf_threshold=0.0)
    ours, masked = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    upstream = torch.randn(qkv[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (HeSSAttentionProcessor(WEIGHTS, config)(*ours, layout) * upstream).sum().backward()
    (expected_output(masked, layout, WEIGHTS, config) * upstream).sum().backward()
    torch.testing.assert_close(ours.grad, masked.grad, rtol=1e-10, atol=1e-12)


# Bad input, copies.


def test_fp8_where_it_cannot_be_had() -> None:
    processor = HeSSAttentionProcessor(WEIGHTS, replace(SMALL, qk_dtype="fp8"))
    with pytest.raises(ValueError, match="qk_dtype='fp8' needs backend 'triton', got 'reference'"):
        processor(*tokens(TokenLayout(3, 5, (5, 7))), TokenLayout(3, 5, (5, 7)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [0, 1])
@pytest.mark.parametrize("token", [0, -1])  # a special and a patch token
@pytest.mark.parametrize("dense_below", [0, 10_000])
def test_non_finite_input_is_refused(value: float, tensor: int, token: int, dense_below: int) -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout)
    qkv[tensor, 0, 1, token, 2] = value
    processor = HeSSAttentionProcessor(WEIGHTS, replace(SMALL, dense_below_tokens=dense_below))
    with pytest.raises(ValueError, match="contains NaN or infinity; check that the images are finite"):
        processor(*qkv, layout)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (None, "allocation 'hess' needs head_weights, got None"),
        ((1.0, float("nan")), "must be finite, >= 0 and not all zero"),
        ((1.0, float("inf")), "must be finite"),
        ((1.0, -0.1), "must be finite, >= 0"),
        ((0.0, 0.0), "not all zero"),
        ((), "not all zero"),
    ],
)
def test_bad_weights_are_refused(weights: tuple[float, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeSSAttentionProcessor(weights, SMALL)


def test_mismatches_name_both_sides() -> None:
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout)
    with pytest.raises(ValueError, match="head_weights has 3 entries, q has 4 heads"):
        HeSSAttentionProcessor((1.0, 2.0, 3.0), SMALL)(*qkv, layout)
    with pytest.raises(
        ValueError, match=r"q has shape \[1, 4, 120, 8\], the layout has 4 views of 40 tokens"
    ):
        HeSSAttentionProcessor(WEIGHTS, SMALL)(*qkv, TokenLayout(4, 5, (5, 7)))
    with pytest.raises(
        ValueError, match=r"3 views of 40 tokens and 1 after them; q must be \[B, H, 121, D\]"
    ):
        HeSSAttentionProcessor(WEIGHTS, SMALL)(*qkv, replace(layout, num_trailing_tokens=1))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_equal_and_independent(duplicate, used: bool) -> None:  # type: ignore[no-untyped-def]
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout)
    processor = HeSSAttentionProcessor(WEIGHTS, replace(SMALL, sparse_ratio=0.8, cdf_threshold=0.0))
    if used:
        processor(*qkv, layout)
    other = duplicate(processor)
    assert torch.equal(other(*qkv, layout), processor(*qkv, layout))
    assert torch.equal(other.kept_blocks, processor.kept_blocks)
    kept = processor.kept_blocks.clone()
    other(*qkv[:, :, :, : layout.tokens_per_view], replace(layout, num_views=1))
    assert torch.equal(processor.kept_blocks, kept)


@pytest.mark.parametrize("allocation", ["hess", "uniform"])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
@pytest.mark.parametrize("at_once", [1, 3])
def test_heads_at_a_time_change_nothing(
    at_once: int, threshold: float, allocation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = TokenLayout(3, 5, (5, 7))
    q, k, v = tokens(layout, batch=2)
    config = replace(SMALL, sparse_ratio=0.8, cdf_threshold=threshold, allocation=allocation)
    processor = HeSSAttentionProcessor(WEIGHTS, config)
    together, kept = processor(q, k, v, layout), processor.kept_blocks
    blocks = 3 * 5 * 7  # patches
    map_bytes = 4 * 2 * -(-blocks // 16) * -(-blocks // 8)  # of one head in both items of the batch
    monkeypatch.setattr(plan, "MAP_BYTES", at_once * map_bytes)
    groups = [heads for heads, _ in BlockPlan(*patches(torch.stack([q, k]), layout), WEIGHTS, config)]
    assert len(groups) == -(-4 // at_once)
    torch.testing.assert_close(processor(q, k, v, layout), together, rtol=1e-12, atol=1e-14)
    assert torch.equal(processor.kept_blocks, kept)


def test_fp8_selects_the_same_blocks() -> None:
    """Queries and keys are rounded for attention alone, and special queries attend unrounded."""
    layout = TokenLayout(3, 5, (5, 7))
    qkv = tokens(layout, scale=1.0).half().to("cuda" if torch.cuda.is_available() else "cpu")
    qkv = F.pad(qkv, (0, 24))  # fp8 takes 32 channels
    config = HeSSConfig(
        q_block_size=16, kv_block_size=16, sparse_ratio=0.8, cdf_threshold=0.0, backend="triton"
    )
    plain, low = (HeSSAttentionProcessor(WEIGHTS, replace(config, qk_dtype=d)) for d in ("same", "fp8"))
    try:
        out = low(*qkv, layout)
    except ValueError as error:
        pytest.skip(str(error))
    expected = plain(*qkv, layout)
    assert torch.equal(low.kept_blocks, plain.kept_blocks)
    special = is_special(layout)
    assert torch.equal(out[:, :, special], expected[:, :, special])
    difference = (out - expected)[:, :, ~special].float().norm() / expected[:, :, ~special].float().norm()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(
    ("allocation", "threshold"), [("hess", 0.0), ("hess", 0.6), ("uniform", 0.6), ("reverse", 0.0)]
)
def test_triton_selects_the_same_blocks(allocation: str, threshold: float) -> None:
    layout = TokenLayout(3, 5, (5, 7))
    q, k, v = tokens(layout).float().to("cuda" if torch.cuda.is_available() else "cpu")
    config = HeSSConfig(
        q_block_size=16, kv_block_size=16, sparse_ratio=0.8, cdf_threshold=threshold, allocation=allocation
    )
    ours, theirs = (
        HeSSAttentionProcessor(WEIGHTS, replace(config, backend=b)) for b in ("reference", "triton")
    )
    try:
        out = theirs(*(F.pad(x, (0, 8)) for x in (q, k, v)), layout)  # the kernels take 16 channels
    except ValueError as error:
        pytest.skip(str(error))
    expected = ours(*(F.pad(x, (0, 8)) for x in (q, k, v)), layout)
    assert torch.equal(theirs.kept_blocks, ours.kept_blocks)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
