"""Gradients of the Triton kernels against those of the definition in float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import random_case, to
from hess_attention import dense_mask_attention, transpose
from hess_attention.tuning import Tile, default_tile
from torch import Tensor

triton_backward = pytest.importorskip("hess_attention.triton_backward")
triton_forward = pytest.importorskip("hess_attention.triton_forward")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASES = [  # batch, heads, tokens, dim, special, q block, kv block
    (1, 1, 1, 16, 0, 16, 16),
    (1, 2, 37, 16, 5, 32, 16),
    (1, 1, 111, 64, 17, 64, 32),
    (1, 1, 130, 128, 0, 128, 64),
]
# On a GPU products of float32 are made of three of TF32, which keep 2^-21 of each.
ROUNDING = {torch.float32: 8 * torch.finfo(torch.float32).eps} if CUDA else {}
CAPABILITY = torch.cuda.get_device_capability() if CUDA else (8, 0)
KERNELS = "forward", "backward_queries", "backward_keys"
TILES = {}  # instead of the defaults
SPECIAL = ("special_k", "special_v")


def gradients(args: list[Tensor], keywords: dict, grad: Tensor) -> list[Tensor]:
    """Of q, k, v and the special keys and values, by the kernels, on the CPU."""
    q, k, v, counts, indices, grad, special_k, special_v = (
        None if x is None else x.to(DEVICE)
        for x in (*args, grad.to(args[0].dtype), *(keywords.get(name) for name in SPECIAL))
    )
    call = (q, k, v, counts, indices, special_k, special_v)
    sizes = keywords["q_block_size"], keywords["kv_block_size"]
    default = (CAPABILITY, q.dtype, q.shape[3], keywords["q_block_size"])
    forward, *tiles = (TILES.get(name, default_tile(name, *default)) for name in KERNELS)
    out, lse = triton_forward.forward(*call, *sizes, forward)
    return [x.cpu() for x in triton_backward.backward(grad, *call, out, lse, *sizes, *tiles)]


def defined_gradients(args: list[Tensor], keywords: dict, grad: Tensor) -> list[Tensor]:
    """The same by PyTorch, through the definition."""
    leaves = [*args[:3], *(keywords[name] for name in SPECIAL if name in keywords)]
    leaves = [x.detach().requires_grad_() for x in leaves]
    special = {name: leaf for name, leaf in zip(SPECIAL, leaves[3:], strict=False)}
    out = dense_mask_attention(*leaves[:3], *args[3:], **keywords | special)
    return list(torch.autograd.grad(out, leaves, grad.to(out.dtype)))


def assert_as_good_as_the_definition(case: tuple[int, ...], dtype: torch.dtype) -> None:
    args, keywords = to(*random_case(*case), dtype)
    grad = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    truth = defined_gradients(*to(args, keywords, torch.float64), grad)
    low = defined_gradients(args, keywords, grad)
    found = gradients(args, keywords, grad)
    assert len(found) == len(truth)
    # One key alone has probability 1, and then some gradients are 0: compare with the largest of all.
    rounding = ROUNDING.get(dtype, torch.finfo(dtype).eps) * max(true.abs().max() for true in truth)
    for name, true, defined, own in zip(("q", "k", "v", *SPECIAL), truth, low, found, strict=False):
        assert own.dtype == dtype
        allowed = 3 * (defined.double() - true).abs().max() + rounding
        assert (own.double() - true).abs().max() <= allowed, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parity(case: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_as_good_as_the_definition(case, dtype)


def test_unlisted_keys_get_zero() -> None:
    args, keywords = to(*random_case(1, 1, 64, 16, 0, 32, 16), torch.float32)
    args[3].fill_(1)
    args[4][..., 0] = 2
    _, grad_k, grad_v = gradients(args, keywords, torch.ones_like(args[0]))
    for grad in (grad_k, grad_v):
        listed = grad[0, 0].abs().amax(1) > 0
        assert listed.tolist() == [False] * 32 + [True] * 16 + [False] * 16


def test_chunks_of_rows_do_not_change_special_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    args, keywords = to(*random_case(1, 1, 70, 16, 20, 16, 16), torch.float32)
    grad = torch.randn_like(args[0])
    per_row = gradients(args, keywords, grad)
    for programs in (2, 6):  # of two blocks each: one chunk, and three over five rows
        monkeypatch.setattr(transpose, "_DENSE_PROGRAMS", programs)
        for one, other in zip(per_row, gradients(args, keywords, grad), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parts_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    args, keywords = to(*random_case(1, 1, 70, 16, 0, 32, 16), torch.float32)
    grad = torch.randn_like(args[0])
    whole = gradients(args, keywords, grad)
    assert default_tile("backward_queries", CAPABILITY, torch.float32, 16, 32).parts == 2
    monkeypatch.setitem(TILES, "backward_queries", Tile(4, 2, parts=1))
    monkeypatch.setitem(TILES, "backward_keys", Tile(4, 2, step=32))
    for one, other in zip(whole, gradients(args, keywords, grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_same_bits_twice() -> None:
    args, keywords = to(*random_case(*CASES[1]), torch.float16)
    grad = torch.randn_like(args[0])
    first, second = (gradients(args, keywords, grad) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize("q_block", [16, 32, 64, 128])
def test_every_step_of_float32(dim: int, q_block: int) -> None:
    """Some that pass elsewhere met illegal memory on sm_90, in whole rows or in the last one."""
    for tokens in (14, 200):
        assert_as_good_as_the_definition((1, 2, tokens, dim, 3, q_block, 64), torch.float32)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [(1, 2, 2000, 64, 50, 128, 64), (2, 3, 1111, 128, 17, 128, 64)])
def test_parity_on_the_gpu(case: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_as_good_as_the_definition(case, dtype)
