"""Queries and keys in e4m3: what they are rounded to, what that costs, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from attention_cases import random_case, to
from hess_attention import block_mask, block_sparse_attention, dense_mask_attention, ops, reference
from torch import Tensor

triton_fp8 = pytest.importorskip("hess_attention.triton_fp8")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HOPPER = not CUDA or torch.cuda.get_device_capability() >= (9, 0)
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(not HOPPER, reason="needs sm_90 or the interpreter"),
]
ROUNDING = 2.0**-4  # of e4m3, relative: half of the distance to the next value, at a power of two
CASES = [  # batch, heads, tokens, dim, special, q block, kv block
    (1, 1, 1, 32, 0, 16, 16),
    (1, 2, 37, 32, 5, 32, 16),
    (2, 1, 111, 64, 17, 64, 32),
    (1, 1, 300, 128, 0, 128, 64),
]


def case_with_common_keys(case: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], dict]:
    """All keys of a head have a large part in common, and heads are of different size."""
    (q, k, v, *lists), keywords = random_case(*case)
    common = 5 * torch.randn(k.shape[0], k.shape[1], 1, k.shape[3], dtype=k.dtype)
    size = torch.arange(1, k.shape[1] + 1)[:, None, None]
    if "special_k" in keywords:
        keywords["special_k"] = size * (3 * keywords["special_k"] + common)
    args, keywords = to([1.5 * q, size * (k + common), v, *lists], keywords, dtype)
    args = [x.to(DEVICE) for x in args]
    return args, {key: x.to(DEVICE) if isinstance(x, Tensor) else x for key, x in keywords.items()}


def defined(args: list[Tensor], keywords: dict) -> Tensor:
    """In float64, of what the twin rounds q and k to."""
    q, k, v, *lists = args
    low_q, low_k, low_special, scales = reference.e4m3_operands(q, k, keywords.get("special_k"))
    wide = [low_q.double() * scales.double()[..., None, None], low_k.double(), v.double()]
    if low_special is not None:
        special_v = keywords["special_v"].double()
        keywords = keywords | {"special_k": low_special.double(), "special_v": special_v}
    return dense_mask_attention(*wide, *lists, **keywords)


def exact(args: list[Tensor], keywords: dict) -> Tensor:
    wide, wide_keywords = to(args, keywords, torch.float64)
    return dense_mask_attention(*wide, **wide_keywords)


@pytest.mark.parametrize("case", CASES)
def test_operands_are_those_of_the_twin(case: tuple[int, ...]) -> None:
    (q, k, *_), keywords = case_with_common_keys(case, torch.float16)
    special = keywords.get("special_k")
    found, twin = (module.e4m3_operands(q, k, special) for module in (triton_fp8, reference))
    torch.testing.assert_close(found[3], twin[3], rtol=1e-5, atol=0)
    largest = max(float(x.float().abs().max()) for x in found[1:3] if x is not None)
    assert float(found[0].float().abs().max()) == reference.E4M3_MAX
    if case[2] > 1:  # one key alone is its own mean
        assert largest == reference.E4M3_MAX
    for own, other in zip(found[:3], twin[:3], strict=True):
        assert (own is None) == (other is None)
        if own is not None and other is not None and case[2] > 1:
            assert own.dtype == torch.float8_e4m3fn
            # Means differ in their last bits, which now and then moves an entry to the next value.
            own, other = own.float(), other.float()
            assert (own != other).float().mean() < 0.01
            torch.testing.assert_close(own, other, rtol=2 * ROUNDING, atol=2.0**-9)


def test_rounding_is_to_the_nearest() -> None:
    """All binades, carries into the next, ties, and what is below the smallest value."""
    steps = torch.arange(-20, 9)[:, None] + torch.linspace(0, 1, 41, dtype=torch.float64)
    values = torch.cat([2.0 ** steps.flatten(), torch.arange(0, 449) / 8]).float()
    values = torch.cat([values, -values]).clamp(-448, 448)
    x = torch.nn.functional.pad(values, (0, -len(values) % 32)).view(1, 1, -1, 32).to(DEVICE)
    low = triton_fp8.rounded(
        x, torch.zeros(1, 1, 1, 32, device=DEVICE), torch.ones(1, 1, 1, 1, device=DEVICE)
    )
    assert torch.equal(low.float(), x.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("case", CASES)
def test_attention_is_that_of_the_operands(case: tuple[int, ...]) -> None:
    args, keywords = case_with_common_keys(case, torch.float16)
    out = block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords)
    assert out.dtype == torch.float16
    truth = defined(args, keywords)
    # Probabilities and the result in float16, and the few entries that are rounded the other way.
    error = out.double() - truth
    assert error.norm() <= 0.005 * truth.norm()


@pytest.mark.parametrize("case", CASES)
def test_scores_are_as_near_as_e4m3_allows(case: tuple[int, ...]) -> None:
    """Two factors with a relative error of 2^-4 each; below the normal values it is 2^-10 of the scale."""
    (q, k, *_), keywords = case_with_common_keys(case, torch.float16)
    low_q, low_k, low_special, scales = reference.e4m3_operands(q, k, keywords.get("special_k"))
    mean = k.double().mean(2, keepdim=True)
    for keys, low in ((k, low_k), (keywords.get("special_k"), low_special)):
        if keys is None or low is None:
            continue
        centred = keys.double() - mean
        scores = low_q.double() @ low.double().mT * scales.double()[..., None, None]
        error = (scores - q.double() @ centred.mT).abs()
        allowed = (2 * ROUNDING + ROUNDING**2) * (q.double().abs() @ centred.abs().mT)
        smallest = 2.0**-10 * 448 * q.shape[3] * scales.double()[..., None, None]
        assert (error <= allowed + 4 * smallest).all()


def expected_error(args: list[Tensor], keywords: dict) -> Tensor:
    """Root mean square of the scores' error: two independent errors a product, relative, at most 2^-4."""
    q, k = args[0].double(), args[1].double()
    k = k - k.mean(2, keepdim=True)
    visible = block_mask(*args[3:], -(-k.shape[2] // keywords["kv_block_size"]))
    visible = visible.repeat_interleave(keywords["q_block_size"], 2)
    visible = visible.repeat_interleave(keywords["kv_block_size"], 3)[:, :, : q.shape[2], : k.shape[2]]
    squares = ((q * q) @ (k * k).mT)[visible]
    return (2 * ROUNDING**2 / 3 * squares.mean() / q.shape[3]).sqrt()


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [(1, 4, 2000, 64, 0, 128, 64), (1, 2, 1111, 128, 0, 128, 64)])
def test_error_on_the_gpu(case: tuple[int, ...], dtype: torch.dtype) -> None:
    (q, k, v, *lists), keywords = random_case(*case)
    args = [x.to(DEVICE) for x in to([q, k, v, *lists], {}, dtype)[0]]
    out = block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords)
    twin, truth = defined(args, keywords), exact(args, keywords)
    eps = torch.finfo(dtype).eps
    assert (out.double() - twin).norm() <= 2 * eps * twin.norm() + 0.005 * truth.norm()
    # What the scores err by, the output errs by: relative to first order, in the mean of many keys.
    assert (out.double() - truth).norm() <= 1.5 * expected_error(args, keywords) * truth.norm()


@pytest.mark.parametrize("case", [(1, 2, 300, 64, 0, 64, 32), (1, 1, 200, 128, 0, 128, 64)])
def test_error_of_the_output(case: tuple[int, ...]) -> None:
    args, keywords = to(*random_case(*case), torch.float16)
    args = [x.to(DEVICE) for x in args]
    out = block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords)
    truth = exact(args, keywords)
    error = (out.double() - truth).norm() / truth.norm()
    plain = block_sparse_attention(*args, backend="triton", **keywords)
    assert (plain.double() - truth).norm() / truth.norm() < error <= 1.5 * expected_error(args, keywords)


def test_what_keys_have_in_common_costs_nothing() -> None:
    (q, k, v, *lists), keywords = random_case(1, 1, 200, 64, 5, 64, 32)
    # Integers below 2^11, so that float16 holds keys with and without the common part.
    k, keywords["special_k"] = (64 * k).round(), (64 * keywords["special_k"]).round()
    common = (320 * torch.randn(64, dtype=k.dtype)).round().clamp(-1000, 1000)
    q = q / 64
    outs = []
    for shift in (torch.zeros_like(common), common):
        moved = keywords | {"special_k": keywords["special_k"] + shift}
        args, moved = to([q, k + shift, v, *lists], moved, torch.float16)
        assert torch.equal(args[1].double(), k + shift)
        args = [x.to(DEVICE) for x in args]
        moved = {key: x.to(DEVICE) if isinstance(x, Tensor) else x for key, x in moved.items()}
        outs.append(block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **moved).double())
    assert (outs[1] - outs[0]).norm() <= 0.005 * outs[0].norm()


def test_zero_queries_or_keys() -> None:
    """Nothing to scale by; all keys count alike."""
    args, keywords = case_with_common_keys(CASES[2], torch.float16)
    for zero in (0, 1):
        inputs = [torch.zeros_like(x) if i == zero else x for i, x in enumerate(args)]
        plain = {key: x for key, x in keywords.items() if not key.startswith("special")}
        out = block_sparse_attention(*inputs, backend="triton", qk_dtype="fp8", **plain)
        torch.testing.assert_close(out.double(), exact(inputs, plain), rtol=0, atol=2e-3)


def test_same_bits_twice() -> None:
    args, keywords = case_with_common_keys(CASES[1], torch.float16)
    one, other = (
        block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords) for _ in range(2)
    )
    assert torch.equal(one, other)


@pytest.mark.skipif(not CUDA, reason="the interpreter knows no bfloat16")
def test_rows_that_outgrow_a_frozen_maximum() -> None:
    """As in bfloat16 they are computed again."""
    (q, k, v, counts, indices), keywords = random_case(1, 2, 300, 64, 0, 128, 64)
    counts.fill_(5)
    indices[:] = torch.arange(5)
    q[:, :, 128:] = q[:, :, 128:].abs() * 16
    k = torch.where(torch.arange(300)[:, None] < 64, k / 8, k.abs() * torch.arange(300)[:, None] / 150)
    args = [x.to(DEVICE) for x in to([q, k, v, counts, indices], {}, torch.bfloat16)[0]]
    out = block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords)
    truth = defined(args, keywords)
    assert out.isfinite().all()
    # Large scores: an entry rounded the other way moves a probability. Most rows have none.
    error = (out.double() - truth).abs().amax(-1)
    assert error.median() <= 2 * torch.finfo(torch.bfloat16).eps * v.abs().max()


def test_opcheck_and_one_graph() -> None:
    args, keywords = case_with_common_keys(CASES[1], torch.float16)
    special = keywords["special_k"], keywords["special_v"]
    sizes = keywords["q_block_size"], keywords["kv_block_size"]
    torch.library.opcheck(ops._fp8_op, (*args, *special, *sizes))

    def attend(*args: Tensor) -> Tensor:
        return block_sparse_attention(*args, backend="triton", qk_dtype="fp8", **keywords)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert torch.equal(attend(*args), compiled(*args))


BAD = [
    ({"backend": "reference"}, {}, "qk_dtype='fp8' needs backend 'triton', got 'reference'"),
    ({"qk_dtype": "e5m2"}, {}, "qk_dtype must be one of same, fp8; got 'e5m2'"),
    ({"lse": torch.empty(1, 1, 40, device=DEVICE)}, {}, "qk_dtype='fp8' gives no log-sum-exp"),
    ({}, {"dtype": torch.float32}, "needs bfloat16 or float16, got torch.float32"),
    ({}, {"dim": 16}, "needs a head dimension of 32, 64, 128, got 16"),
    ({}, {"requires_grad": True}, "needs no gradients, got inputs that require them"),
]


@pytest.mark.parametrize(("options", "inputs", "message"), BAD)
def test_refused(options: dict, inputs: dict, message: str) -> None:
    args, keywords = to(
        *random_case(1, 1, 40, inputs.get("dim", 32), 0, 32, 16), inputs.get("dtype", torch.float16)
    )
    args = [x.to(DEVICE) for x in args]
    args[2].requires_grad_(inputs.get("requires_grad", False))
    options = {"backend": "triton", "qk_dtype": "fp8"} | options
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*args, **options, **keywords)
    if inputs.get("requires_grad"):
        with torch.no_grad():
            assert block_sparse_attention(*args, **options, **keywords).isfinite().all()


def test_older_gpus_are_refused() -> None:
    q = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16)
    message = "needs a GPU since sm_90, got sm_89. qk_dtype='same' has no such limit"
    with pytest.raises(ValueError, match=message):
        ops.check_fp8((8, 9), q)


def test_without_the_mean_the_common_part_would_cost() -> None:
    """Why keys are smoothed at all: rounded as they are, they lose what tells them apart."""
    (q, k, *_), _ = case_with_common_keys((1, 1, 300, 64, 0, 64, 32), torch.float16)
    low_q, low_k, _, scales = reference.e4m3_operands(q, k, None)
    exact_scores = q.double() @ (k.double() - k.double().mean(2, keepdim=True)).mT
    smoothed = low_q.double() @ low_k.double().mT * scales.double()[..., None, None]
    scale = k.float().abs().max() / reference.E4M3_MAX
    plain = (k.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()
    plain = low_q.double() * (q.float().abs().max() / reference.E4M3_MAX).double() @ plain.mT
    spread = (plain - plain.mean(3, keepdim=True) - exact_scores).norm()
    assert (smoothed - exact_scores).norm() < 0.5 * spread
