"""The forward kernel against float64, in Triton's interpreter or, where there is one, on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from attention_cases import random_case, to
from hess_attention import block_mask, dense_mask_attention
from hess_attention.tuning import Tile, default_tile
from torch import Tensor

triton_forward = pytest.importorskip("hess_attention.triton_forward")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = [  # batch, heads, tokens, dim, special, q block, kv block
    (1, 1, 1, 16, 0, 16, 16),
    (1, 2, 37, 16, 5, 32, 16),
    (2, 1, 64, 32, 16, 32, 16),
    (1, 1, 111, 64, 17, 64, 32),
    (1, 1, 130, 128, 0, 128, 64),
]
# On a GPU products of float32 are made of three of TF32, which keep 2^-21 of each.
ROUNDING = {torch.float32: 8 * torch.finfo(torch.float32).eps} if CUDA else {}
CAPABILITY = torch.cuda.get_device_capability() if CUDA else (8, 0)
HOPPER = CUDA and CAPABILITY >= (9, 0)
TILES = [
    Tile(4, 2),
    pytest.param(Tile(4, 3, tma=True), marks=pytest.mark.skipif(CUDA and not HOPPER, reason="sm_90")),
    Tile(4, 2, parts=2),
    Tile(4, 2, frozen=True),
]


def attend(args: list[Tensor], keywords: dict, tile: Tile) -> tuple[Tensor, Tensor]:
    """The kernel on the tests' device; results on the CPU."""
    q, k, v, counts, indices, special_k, special_v = (
        None if x is None else x.to(DEVICE)
        for x in (*args, keywords.get("special_k"), keywords.get("special_v"))
    )
    sizes = keywords["q_block_size"], keywords["kv_block_size"]
    out, lse = triton_forward.forward(q, k, v, counts, indices, special_k, special_v, *sizes, tile)
    return out.cpu(), lse.cpu()


def assert_as_good_as_the_definition(
    args: list[Tensor], keywords: dict, dtype: torch.dtype, tile: Tile
) -> None:
    """No further from float64 than twice the definition in the same dtype, and one rounding."""
    args, keywords = to(args, keywords, dtype)
    wide_args, wide_keywords = to(args, keywords, torch.float64)
    truth = dense_mask_attention(*wide_args, **wide_keywords)
    allowed = (dense_mask_attention(*args, **keywords).double() - truth).abs().max()
    out, lse = attend(args, keywords, tile)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    eps = ROUNDING.get(dtype, torch.finfo(dtype).eps)
    assert (out.double() - truth).abs().max() <= 2 * allowed + eps * truth.abs().max()
    # In float32 whatever the dtype: of the scores, only their sum is rounded.
    expected = log_sum_exp(wide_args, wide_keywords)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)


def log_sum_exp(args: list[Tensor], keywords: dict) -> Tensor:
    """[B, H, N] log2 of the sum of e^score over special keys and listed blocks."""
    q, k, _, counts, indices = args
    tokens, block = q.shape[2], keywords["kv_block_size"]
    visible = block_mask(counts, indices, -(-tokens // block))
    visible = visible.repeat_interleave(keywords["q_block_size"], 2).repeat_interleave(block, 3)
    scores = (q @ k.transpose(-2, -1)).masked_fill(~visible[:, :, :tokens, :tokens], -math.inf)
    if "special_k" in keywords:
        scores = torch.cat([scores, q @ keywords["special_k"].transpose(-2, -1)], dim=3)
    return (scores / math.sqrt(q.shape[3])).logsumexp(3) / math.log(2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parity(case: tuple[int, ...], dtype: torch.dtype) -> None:
    tile = default_tile("forward", CAPABILITY, dtype, case[3], case[5])
    assert_as_good_as_the_definition(*random_case(*case), dtype, tile)


@pytest.mark.parametrize("tile", TILES[1:])
@pytest.mark.parametrize("case", [CASES[1], CASES[3]])
def test_parity_of_variants(case: tuple[int, ...], tile: Tile) -> None:
    assert_as_good_as_the_definition(*random_case(*case), torch.float32, tile)


@pytest.mark.parametrize("budget", ["least", "all", "one dense head"])
def test_extreme_budgets(budget: str) -> None:
    (q, k, v, counts, indices), keywords = random_case(1, 3, 39, 16, 5, 32, 16)
    dense = torch.arange(3).expand_as(indices).int()
    if budget == "least":
        counts = torch.ones_like(counts)
    elif budget == "all":
        counts, indices = torch.full_like(counts, 3), dense
    else:
        counts = torch.ones_like(counts)
        counts[0, 1], indices[0, 1] = 3, dense[0, 1]
    assert_as_good_as_the_definition([q, k, v, counts, indices], keywords, torch.float32, Tile(4, 2))


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("tile", TILES[:2])
def test_a_partial_block_does_not_read_the_next_head(tile: Tile) -> None:
    """Its keys would be hidden, but zero probability times NaN is NaN."""
    (q, k, v, counts, indices), keywords = random_case(1, 2, 20, 16, 3, 32, 16)
    indices[0, 0, 0, 0], counts[0, 0, 0] = 1, 1
    args, keywords = to([q, k, v, counts, indices], keywords, torch.float32)
    for x in (*args[:3], keywords["special_k"], keywords["special_v"]):
        x[:, 1] = math.nan
    out, lse = attend(args, keywords, tile)
    assert out[:, 0].isfinite().all()
    assert lse[:, 0].isfinite().all()
    assert out[:, 1].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("tile", TILES)
def test_large_scores(tile: Tile) -> None:
    """Later keys outgrow the first by more than float32 can hold: a frozen maximum has to be given up."""
    (q, k, v, counts, indices), keywords = random_case(1, 1, 70, 16, 0, 32, 16)
    counts.fill_(5)
    indices[:] = torch.arange(5)
    q = q.abs() * 20
    k = k.abs() * torch.arange(1, 71)[:, None] / 10
    args, keywords = to([q, k, v, counts, indices], keywords, torch.float32)
    scores = (args[0] @ args[1].transpose(-2, -1) / 4 / math.log(2))[0, 0]
    assert (scores.amax(1) - scores[:, :16].amax(1)).min() > 128
    out, lse = attend(args, keywords, tile)
    truth = dense_mask_attention(*to(args, {}, torch.float64)[0], **keywords)
    # Rounded scores of some thousand, in the exponent.
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=2e-2 if CUDA else 2e-3)
    torch.testing.assert_close(lse.double(), scores.double().amax(1)[None, None], rtol=1e-3, atol=1)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_a_frozen_maximum_in_float16() -> None:
    """Probabilities of 2^16 and more are no problem in float32 and infinite in float16."""
    (q, k, v, counts, indices), keywords = random_case(1, 1, 70, 16, 0, 32, 16)
    counts.fill_(5)
    indices[:] = torch.arange(5)
    q, k = q.abs() * 2.5, k.abs() * torch.arange(1, 71)[:, None] / 10
    scores = (q @ k.transpose(-2, -1) / 4 / math.log(2))[0, 0]
    excess = scores.amax(1) - scores[:, :16].amax(1)
    assert excess.max() < 90
    assert excess.min() > 16
    tile = Tile(4, 2, frozen=True)
    assert_as_good_as_the_definition([q, k, v, counts, indices], keywords, torch.float16, tile)


@pytest.mark.skipif(not HOPPER, reason="needs a GPU with the copy engine; the interpreter knows no bfloat16")
@pytest.mark.parametrize("options", [{}, {"num_warps": 4, "maxnreg": 160}])
def test_rows_that_outgrow_a_frozen_maximum_in_bfloat16(options: dict) -> None:
    """Only a second launch can compute them; the first row of blocks does not outgrow and needs none."""
    (q, k, v, counts, indices), keywords = random_case(1, 2, 300, 64, 0, 128, 64)
    counts.fill_(5)
    indices[:] = torch.arange(5)
    q[:, :, :128] /= 8
    q[:, :, 128:] = q[:, :, 128:].abs() * 16
    k = torch.where(torch.arange(300)[:, None] < 64, k / 8, k.abs() * torch.arange(300)[:, None] / 150)
    args, keywords = to([q, k, v, counts, indices], keywords, torch.bfloat16)
    wide = to(args, keywords, torch.float64)
    scores = wide[0][0] @ wide[0][1].transpose(-2, -1) / 8 / math.log(2)
    excess = scores.amax(-1) - scores[..., :64].amax(-1)
    assert excess[..., :128].max() < 20
    assert 100 < excess[..., 128:].min() < excess[..., 128:].max() < 1000
    tile = default_tile("forward", CAPABILITY, torch.bfloat16, 64, 128)._replace(**options)
    assert tile.frozen
    out, lse = attend(args, keywords, tile)
    # Probabilities and the result are rounded to bfloat16, nothing else is.
    eps = torch.finfo(torch.bfloat16).eps
    assert (out.double() - dense_mask_attention(*wide[0], **wide[1])).abs().max() <= eps * v.abs().max()
    torch.testing.assert_close(lse.double(), log_sum_exp(*wide), rtol=1e-5, atol=1e-3)


def test_same_bits_twice() -> None:
    args, keywords = to(*random_case(*CASES[1]), torch.float16)
    first, second = (attend(args, keywords, Tile(4, 2)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_heads_by_budget() -> None:
    counts = torch.tensor([[[1, 1], [5, 5]], [[2, 2], [9, 1]]])
    order = triton_forward.heads_by_budget(counts.flatten(0, 1)[None])
    assert counts.flatten(0, 1).sum(1)[order].tolist() == [10, 10, 4, 2]


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [(1, 2, 2000, 64, 50, 128, 64), (2, 3, 1111, 128, 17, 128, 64)])
def test_parity_on_the_gpu(case: tuple[int, ...], dtype: torch.dtype, tile: Tile) -> None:
    assert_as_good_as_the_definition(*random_case(*case), dtype, tile)
