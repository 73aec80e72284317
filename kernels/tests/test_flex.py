"""FlexAttention as a backend; without a GPU it is not compiled, and then only its mask is looked at."""

from __future__ import annotations

import pytest
import torch
from attention_cases import random_case, to
from hess_attention import block_sparse_attention, dense_mask_attention, resolve_backend
from hess_attention.flex import flex_attention
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

CUDA = torch.cuda.is_available()
CASES = [  # batch, heads, tokens, dim, special, q block, kv block
    (1, 1, 1, 16, 0, 128, 64),
    (1, 2, 130, 16, 7, 128, 64),
    (2, 2, 128, 16, 32, 32, 16),
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES)
def test_parity(case: tuple[int, ...]) -> None:
    args, keywords = to(*random_case(*case), torch.float32)
    torch.testing.assert_close(flex_attention(*args, **keywords), dense_mask_attention(*args, **keywords))


@pytest.mark.parametrize("case", CASES)
def test_lists(case: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiled kernel will use: whole blocks unmasked, padded ones masked, together all listed."""
    made = []
    from_lists = BlockMask.from_kv_blocks
    monkeypatch.setattr(
        BlockMask, "from_kv_blocks", lambda *args, **kw: made.append(args) or from_lists(*args, **kw)
    )
    args, keywords = random_case(*case)
    flex_attention(*args, **keywords)
    _, _, tokens, _, num_special, _, block = case
    masked, masked_blocks, whole, whole_blocks = made[0]
    special_blocks = -(-num_special // block)
    assert torch.equal(masked + whole, args[3] + special_blocks)
    padded = {special_blocks - 1} if num_special % block else set()
    if tokens % block:
        padded.add(special_blocks + tokens // block)
    for counts, blocks, allowed in ((masked, masked_blocks, True), (whole, whole_blocks, False)):
        listed = torch.arange(blocks.shape[-1]) < counts[..., None]
        assert all((index in padded) == allowed for index in blocks[listed].tolist())


def test_no_log_sum_exp() -> None:
    args, keywords = random_case(*CASES[0])
    with pytest.raises(ValueError, match="backend 'flex' gives no log-sum-exp"):
        flex_attention(*args, **keywords, lse=torch.empty(1, 1, 1))


def test_needs_a_gpu_to_be_chosen() -> None:
    args, keywords = random_case(*CASES[0])
    assert resolve_backend("flex", torch.device("cuda"), torch.float32, 24, 96, 96) == "flex"
    with pytest.raises(ValueError, match="backend 'flex' is not available on cpu"):
        block_sparse_attention(*args, backend="flex", **keywords)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_the_gpu(dtype: torch.dtype) -> None:
    args, keywords = to(*random_case(1, 2, 2000, 64, 50, 128, 64), dtype)
    wide_args, wide_keywords = to(args, keywords, torch.float64)
    truth = dense_mask_attention(*wide_args, **wide_keywords)
    allowed = (dense_mask_attention(*args, **keywords).double() - truth).abs().max()
    args = [x.cuda() for x in args]
    keywords = {name: x.cuda() if isinstance(x, Tensor) else x for name, x in keywords.items()}
    out = block_sparse_attention(*args, backend="flex", **keywords).double().cpu()
    assert (out - truth).abs().max() <= 2 * allowed + torch.finfo(dtype).eps * truth.abs().max()
