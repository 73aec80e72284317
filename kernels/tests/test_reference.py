"""The reference against its definition: a dense mask in double precision."""

from __future__ import annotations

import inspect

import hess_attention
import pytest
import torch
from attention_cases import random_case, to
from hess_attention import (
    block_mask,
    block_sparse_attention,
    dense_mask_attention,
    reference,
    resolve_backend,
)
from torch import Tensor
from torch.nn import functional as F


def looped(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, **kw: Tensor | int) -> Tensor:
    """Query by query, key by key: what the words of the docstring say."""
    out = torch.zeros_like(q)
    for b, h, i in (
        (b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])
    ):
        row = i // kw["q_block_size"]
        listed = indices[b, h, row, : counts[b, h, row]].tolist()
        chosen = [j for j in range(k.shape[2]) if j // kw["kv_block_size"] in listed]
        keys, values = k[b, h, chosen], v[b, h, chosen]
        if "special_k" in kw:
            keys, values = (
                torch.cat([kw["special_k"][b, h], keys]),
                torch.cat([kw["special_v"][b, h], values]),
            )
        out[b, h, i] = (keys @ q[b, h, i] / q.shape[3] ** 0.5).softmax(0) @ values
    return out


CASES = [  # batch, heads, tokens, dim, special, q block, kv block
    (1, 1, 1, 4, 0, 128, 64),
    (1, 2, 63, 16, 5, 128, 64),
    (2, 3, 65, 8, 1, 16, 8),
    (2, 2, 111, 16, 10, 32, 16),
    (1, 2, 128, 8, 0, 32, 32),
    (1, 3, 97, 8, 3, 8, 32),
    (1, 2, 300, 8, 7, 128, 64),
]


def test_smoke() -> None:
    args, keywords = random_case(1, 2, 20, 8, 3, 8, 4)
    torch.testing.assert_close(dense_mask_attention(*args, **keywords), looped(*args, **keywords))
    torch.testing.assert_close(block_sparse_attention(*args, **keywords), looped(*args, **keywords))


@pytest.mark.parametrize("case", CASES)
def test_log_sum_exp(case: tuple[int, ...]) -> None:
    args, keywords = random_case(*case)
    lse, expected = torch.full((2, *args[0].shape[:3]), torch.nan, dtype=torch.float64)
    out = block_sparse_attention(*args, **keywords, lse=lse)
    dense_mask_attention(*args, **keywords, lse=expected)
    torch.testing.assert_close(lse, expected)
    assert torch.equal(out, block_sparse_attention(*args, **keywords))


def test_outputs_over_disjoint_keys_can_be_merged() -> None:
    """What a log-sum-exp is for: even and odd blocks apart, special keys with the even ones."""
    (q, k, v, _, _), keywords = random_case(1, 2, 64, 8, 3, 16, 8)
    lists = [torch.arange(part, 8, 2).expand(1, 2, 4, 4) for part in (0, 1)]
    counts, none = torch.full((1, 2, 4), 4), {"special_k": None, "special_v": None}
    parts, sums = [], torch.empty(2, 1, 2, 64, dtype=torch.float64)
    for indices, more, lse in zip(lists, ({}, none), sums, strict=True):
        parts.append(block_sparse_attention(q, k, v, counts, indices, **keywords | more, lse=lse))
    whole = torch.arange(8).expand(1, 2, 4, 8)
    expected = block_sparse_attention(q, k, v, 2 * counts, whole, **keywords)
    torch.testing.assert_close((sums.softmax(0)[..., None] * torch.stack(parts)).sum(0), expected)


@pytest.mark.parametrize(
    "lse",
    [torch.empty(1, 2, 19), torch.empty(1, 2, 20).half(), torch.empty(1, 2, 20, requires_grad=True)],
    ids=["shape", "dtype", "gradient"],
)
def test_a_place_that_cannot_be_filled(lse: Tensor) -> None:
    args, keywords = random_case(1, 2, 20, 8, 3, 8, 4)
    with pytest.raises(ValueError, match=r"lse is .* it is filled, so it must be float32 or .*\[1, 2, 20\]"):
        block_sparse_attention(*args, **keywords, lse=lse)


@pytest.mark.parametrize("case", CASES)
def test_gather_equals_dense_mask(case: tuple[int, ...]) -> None:
    args, keywords = random_case(*case)
    out = block_sparse_attention(*args, **keywords)
    torch.testing.assert_close(out, dense_mask_attention(*args, **keywords), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5000, 20000])
def test_chunks_do_not_change_the_result(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args, keywords = random_case(2, 2, 111, 16, 10, 32, 16)
    expected = block_sparse_attention(*args, **keywords)
    calls = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or attend(*a, **k))
    monkeypatch.setattr(reference, "_CHUNK_SCORES", chunk)
    torch.testing.assert_close(block_sparse_attention(*args, **keywords), expected, rtol=1e-13, atol=1e-13)
    assert len(calls) > 1
    if chunk > 1:  # chunks hold what they may and no more
        assert all(q.shape[-2] * k.shape[-2] * len(q) <= chunk for q, k, _ in calls)


@pytest.mark.parametrize("num_special", [0, 10])
def test_all_blocks_is_dense_attention(num_special: int) -> None:
    (q, k, v, counts, indices), keywords = random_case(2, 2, 111, 16, num_special, 32, 16)
    width = indices.shape[-1]
    out = block_sparse_attention(
        q, k, v, torch.full_like(counts, width), torch.arange(width).expand_as(indices).int(), **keywords
    )
    if num_special:
        k, v = torch.cat([k, keywords["special_k"]], dim=2), torch.cat([v, keywords["special_v"]], dim=2)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), rtol=1e-12, atol=1e-12)


def test_narrow_list_equals_wide_list() -> None:
    args, keywords = random_case(1, 2, 97, 8, 3, 8, 32)
    args[3] = args[3].clamp(max=2)
    narrow = block_sparse_attention(*args[:4], args[4][..., :2], **keywords)
    assert torch.equal(narrow, block_sparse_attention(*args, **keywords))


def test_unlisted_keys_have_no_influence() -> None:
    args, keywords = random_case(1, 2, 97, 8, 3, 8, 32)
    out = block_sparse_attention(*args, **keywords)
    row, block = next(
        (row, block)
        for row, mask in enumerate(block_mask(args[3], args[4], 4)[0, 0].tolist())
        for block, listed in enumerate(mask)
        if not listed
    )
    args[1], args[2] = args[1].clone(), args[2].clone()
    args[1][0, 0, 32 * block : 32 * block + 32] += 100.0
    args[2][0, 0, 32 * block : 32 * block + 32] = 1e6
    changed = block_sparse_attention(*args, **keywords)
    assert torch.equal(changed[0, 0, 8 * row : 8 * row + 8], out[0, 0, 8 * row : 8 * row + 8])
    assert torch.equal(changed[:, 1], out[:, 1])
    assert not torch.equal(changed[0, 0], out[0, 0])


def test_gradients() -> None:
    args, keywords = random_case(1, 2, 11, 3, 2, 4, 3)
    leaves = [x.requires_grad_() for x in (*args[:3], keywords["special_k"], keywords["special_v"])]

    def attend(q: Tensor, k: Tensor, v: Tensor, special_k: Tensor, special_v: Tensor) -> Tensor:
        special = {"special_k": special_k, "special_v": special_v}
        return block_sparse_attention(q, k, v, *args[3:], **keywords | special)

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("case", CASES[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision(case: tuple[int, ...], dtype: torch.dtype) -> None:
    args, keywords = random_case(*case)
    low_args, low_keywords = to(args, keywords, dtype)
    # The truth for the rounded inputs; the bound is what the definition itself loses in this dtype.
    truth = dense_mask_attention(
        *to(low_args, low_keywords, torch.float64)[0], **to([], low_keywords, torch.float64)[1]
    )
    allowed = (dense_mask_attention(*low_args, **low_keywords).double() - truth).abs().max()
    out = block_sparse_attention(*low_args, **low_keywords)
    assert out.dtype == dtype
    assert (out.double() - truth).abs().max() <= 2 * allowed + torch.finfo(dtype).eps * truth.abs().max()


def test_block_mask_hand_worked() -> None:
    mask = block_mask(torch.tensor([[[2, 1]]]), torch.tensor([[[[0, 3, 0], [2, 0, 0]]]]), 4)
    assert mask.tolist() == [[[[True, False, False, True], [False, False, True, False]]]]


# Choice of backend.


def test_auto_takes_the_first_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    call = (torch.device("cpu"), torch.float64, 4, 2, 2)
    assert resolve_backend("auto", *call) == "reference"
    fast = hess_attention.Backend(lambda *args, **kwargs: args[0] * 0, lambda device: device.type == "cpu")
    monkeypatch.setattr(hess_attention, "BACKENDS", {"fast": fast, **hess_attention.BACKENDS})
    assert resolve_backend("auto", *call) == "fast"
    assert resolve_backend("reference", *call) == "reference"
    args, keywords = random_case(1, 1, 5, 4, 0, 2, 2)
    assert not block_sparse_attention(*args, **keywords).any()
    with pytest.raises(
        ValueError, match=r"backend 'fast' is not available on cuda; available there: auto, .*reference"
    ):
        resolve_backend("fast", torch.device("cuda"), *call[1:])
    with pytest.raises(
        ValueError, match=r"backend 'tritn' is not available on cpu; .*: auto, fast, .*reference"
    ):
        block_sparse_attention(*args, backend="tritn", **keywords)


def test_backends_have_one_signature() -> None:
    public = inspect.signature(block_sparse_attention).parameters
    shared = [p for name, p in public.items() if name not in ("backend", "qk_dtype")]
    backends = (backend.attend for backend in hess_attention.BACKENDS.values())
    for attend in (*backends, dense_mask_attention, hess_attention.fp8_attention):
        assert list(inspect.signature(attend).parameters.values()) == shared


# Bad input. The case: 10 tokens, 5 rows of 2 queries, 4 blocks of 3 keys, 2 special keys.

BAD = [
    ("q", lambda x: x[0], "q must be a floating tensor .* got torch.float64 \\[2, 10, 4\\]"),
    ("q", lambda x: x.long(), "q must be a floating tensor"),
    ("q", lambda x: x[:, :, :0], "no empty dimension"),
    ("k", lambda x: x[:, :1], r"k has shape \[1, 1, 10, 4\], q has \[1, 2, 10, 4\]"),
    ("v", lambda x: x[..., :3], r"v has shape \[1, 2, 10, 3\]"),
    ("v", lambda x: x.float(), "v is torch.float32 on cpu, q is torch.float64 on cpu"),
    ("k", lambda x: x.to("meta"), "k is torch.float64 on meta"),
    ("special_k", lambda x: None, "must be given together"),
    ("special_v", lambda x: x[:, :, :1], r"special_v has shape \[1, 2, 1, 4\], .* must be \[1, 2, 2, 4\]"),
    ("special_k", lambda x: x[0], "special_k has shape"),
    ("counts", lambda x: x[..., :4], r"kv_num_blocks has shape \[1, 2, 4\]; .* need \[1, 2, 5\]"),
    ("counts", lambda x: x.double(), "kv_num_blocks is torch.float64"),
    ("counts", lambda x: x * 0, r"kv_num_blocks must be in \[1, 4\].* got 0 to 0"),
    ("counts", lambda x: x + 4, r"kv_num_blocks must be in \[1, 4\]"),
    ("indices", lambda x: x[:, :, :4], r"kv_indices has shape \[1, 2, 4, 4\]; .* \[1 to 4\]"),
    ("indices", lambda x: torch.cat([x, x], -1), r"kv_indices has shape \[1, 2, 5, 8\]"),
    ("indices", lambda x: x.float(), "kv_indices is torch.float32"),
    ("indices", lambda x: x + 4, r"kv_indices must be in \[0, 4\)"),
    ("indices", lambda x: x - 4, r"kv_indices must be in \[0, 4\); got values from -4"),
    ("indices", lambda x: x.flip(-1), "strictly ascending"),
    ("q_block_size", lambda x: 0, "block sizes must be at least 1, got 0 and 3"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_bad_input(name: str, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    args, keywords = random_case(1, 2, 10, 4, 2, 2, 3)
    args[3], args[4] = torch.full_like(args[3], 4), torch.arange(4).expand_as(args[4]).int()
    call = dict(zip(("q", "k", "v", "counts", "indices"), args, strict=True)) | keywords
    call[name] = spoil(call[name])
    positional = [call.pop(key) for key in ("q", "k", "v", "counts", "indices")]
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*positional, **call)
