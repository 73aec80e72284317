"""The operators: what `torch.compile` and autograd need of them, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hess_attention
import pytest
import torch
from attention_cases import random_case, to
from hess_attention import block_sparse_attention, dense_mask_attention, ops
from torch import Tensor

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def small_case(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], dict]:
    """One head, two rows of 32 queries, three blocks of 16 keys, special keys."""
    args, keywords = to(*random_case(1, 1, 40, 16, 3, 32, 16), dtype)
    args = [x.to(DEVICE) for x in args]
    return args, {key: x.to(DEVICE) if isinstance(x, Tensor) else x for key, x in keywords.items()}


def attend(args: list[Tensor], keywords: dict, leaves: list[Tensor]) -> Tensor:
    special = {"special_k": leaves[3], "special_v": leaves[4]}
    return block_sparse_attention(*leaves[:3], *args[3:], backend="triton", **keywords | special)


def leaves_of(args: list[Tensor], keywords: dict) -> list[Tensor]:
    tensors = (*args[:3], keywords["special_k"], keywords["special_v"])
    return [x.clone().requires_grad_() for x in tensors]


def test_the_public_function_and_its_gradients() -> None:
    args, keywords = small_case()
    leaves = leaves_of(args, keywords)
    out = attend(args, keywords, leaves)
    expected = dense_mask_attention(
        *leaves[:3], *args[3:], **keywords | {"special_k": leaves[3], "special_v": leaves[4]}
    )
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for found, true in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-5)


def test_log_sum_exp_is_that_of_the_reference() -> None:
    args, keywords = small_case()
    lse, expected = torch.full((2, *args[0].shape[:3]), torch.nan, device=DEVICE)
    out = block_sparse_attention(*args, backend="triton", **keywords, lse=lse)
    block_sparse_attention(*args, backend="reference", **keywords, lse=expected)
    torch.testing.assert_close(lse, expected)
    assert torch.equal(out, block_sparse_attention(*args, backend="triton", **keywords))


def test_any_layout_and_index_type() -> None:
    args, keywords = small_case()
    expected = block_sparse_attention(*args, backend="triton", **keywords)
    q, k, v = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in args[:3])
    wide = [x.long() for x in args[3:]]
    assert not q.is_contiguous()
    assert torch.equal(block_sparse_attention(q, k, v, *wide, backend="triton", **keywords), expected)


def test_no_special_keys() -> None:
    args, keywords = small_case()
    none = keywords | {"special_k": None, "special_v": None}
    empty = {name: x[:, :, :0] if isinstance(x, Tensor) else x for name, x in keywords.items()}
    expected = dense_mask_attention(*args, **none)
    for case in (none, empty):
        torch.testing.assert_close(block_sparse_attention(*args, backend="triton", **case), expected)


def test_only_the_output_has_a_gradient() -> None:
    args, keywords = small_case()
    q, k, v, *special = leaves_of(args, keywords)
    out, lse = ops._forward_op(q, k, v, *args[3:], *special, 32, 16)
    assert out.requires_grad
    assert not lse.requires_grad


@pytest.mark.parametrize("special", [True, False])
def test_opcheck(special: bool) -> None:
    (q, k, v, counts, indices), keywords = random_case(1, 1, 16, 16, 3, 16, 16)
    tensors = [x.float().to(DEVICE).requires_grad_() for x in (q, k, v)]
    keys = [keywords[name].float().to(DEVICE).requires_grad_() for name in ("special_k", "special_v")]
    call = (*tensors, counts.to(DEVICE), indices.to(DEVICE), *(keys if special else (None, None)), 16, 16)
    torch.library.opcheck(ops._forward_op, call)


def test_compiles_as_one_graph() -> None:
    args, keywords = small_case()
    eager, compiled = leaves_of(args, keywords), leaves_of(args, keywords)
    function = torch.compile(attend, backend="aot_eager", fullgraph=True)
    outs = attend(args, keywords, eager), function(args, keywords, compiled)
    assert torch.equal(*outs)
    for one, other in zip(
        torch.autograd.grad(outs[0].sum(), eager), torch.autograd.grad(outs[1].sum(), compiled), strict=True
    ):
        assert torch.equal(one, other)


def test_two_copies_have_operators_of_their_own() -> None:
    assert ops.add_op_namespace_prefix("x") == "hess_attention_source::x"
    other = pytest.importorskip("hess_plugin.kernels.hess_attention.ops")
    assert other.add_op_namespace_prefix("x") == "hess_plugin_kernels_hess_attention_source::x"
    args, keywords = small_case()
    assert torch.equal(ops.triton_attention(*args, **keywords), other.triton_attention(*args, **keywords))


GOOD = (torch.bfloat16, 64, 128, 64)


@pytest.mark.parametrize(
    ("capability", "call", "expected"),
    [
        ((9, 0), GOOD, "triton"),
        ((8, 0), (torch.float32, 16, 16, 128), "triton"),
        ((7, 5), GOOD, "reference"),
        ((9, 0), (torch.float64, 64, 128, 64), "reference"),
        ((9, 0), (torch.bfloat16, 96, 128, 64), "reference"),
        ((9, 0), (torch.bfloat16, 64, 100, 64), "reference"),
        ((9, 0), (torch.bfloat16, 64, 128, 256), "reference"),
    ],
)
def test_auto_takes_the_kernels_where_they_run(
    capability: tuple[int, int], call: tuple, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hess_attention.resolve_backend("auto", torch.device("cuda"), *call) == expected
    assert hess_attention.resolve_backend("triton", torch.device("cuda"), *call) == "triton"
    # In the interpreter only by name.
    assert hess_attention.resolve_backend("auto", torch.device("cpu"), *call) == "reference"


BAD = [
    (
        {"tokens": 20, "dim": 24},
        torch.float32,
        "does not support head dimension 24; it supports 16, 32, 64, 128",
    ),
    ({"q_block": 48}, torch.float32, "does not support q_block_size 48; it supports 16, 32, 64, 128"),
    ({"kv_block": 8}, torch.float32, "does not support kv_block_size 8"),
    ({}, torch.float64, "does not support dtype torch.float64"),
]


@pytest.mark.parametrize(("changes", "dtype", "message"), BAD)
def test_bad_input(changes: dict[str, int], dtype: torch.dtype, message: str) -> None:
    shape = {"tokens": 40, "dim": 16, "q_block": 32, "kv_block": 16} | changes
    args, keywords = random_case(1, 1, shape["tokens"], shape["dim"], 0, shape["q_block"], shape["kv_block"])
    args = [x.to(DEVICE) for x in to(args, {}, dtype)[0]]
    with pytest.raises(
        ValueError, match=f"backend 'triton' {message}.* backend='reference' has no such limit"
    ):
        block_sparse_attention(*args, backend="triton", **keywords)


@pytest.mark.skipif(DEVICE == "cuda", reason="of the interpreter")
def test_bfloat16_is_refused_by_the_interpreter() -> None:
    args, keywords = small_case(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"does not support dtype torch\.bfloat16; it supports torch\.float16"
    ):
        block_sparse_attention(*args, backend="triton", **keywords)


def test_without_the_interpreter() -> None:
    """Importing the package does not import Triton, and on a CPU the kernels cannot be chosen."""
    code = """
import sys, torch, hess_attention
x, lists = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 1, 1, dtype=torch.int32)
print("triton" in sys.modules)
hess_attention.block_sparse_attention(x, x, x, lists[0], lists * 0, backend="triton")
"""
    folder = Path(hess_attention.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={"PATH": ""}
    )
    assert done.stdout == "False\n"
    message = "ValueError: backend 'triton' is not available on cpu; available there: auto, reference."
    assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("indices", 3, r"kv_indices must be in \[0, 3\)"), ("counts", 4, r"kv_num_blocks must be in \[1, 3\]")],
)
def test_debug_mode_checks_the_lists(
    name: str, value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (q, k, v, counts, indices), keywords = small_case()
    (indices if name == "indices" else counts).flatten()[0].fill_(value)
    monkeypatch.setenv("HESS_ATTENTION_DEBUG", "1")
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(q, k, v, counts, indices, backend="triton", **keywords)
