"""Block means and the coarse attention map."""

from __future__ import annotations

import math

import pytest
import torch

from hess_plugin.sparsity import block_probs, pool_blocks, pooling


def random_tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("tokens", [1, 5, 7, 8, 63, 64, 65, 111])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_shapes_and_loop_parity(tokens: int, block: int) -> None:
    x = random_tokens(2, 3, tokens, 4)
    expected = torch.stack([part.mean(2) for part in x.split(block, dim=2)], dim=2)
    pooled = pool_blocks(x, block)
    assert pooled.shape == (2, 3, math.ceil(tokens / block), 4)
    torch.testing.assert_close(pooled, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pools_in_float32(dtype: torch.dtype) -> None:
    # 4096 + 1 is not representable in bfloat16, so sums in the input's dtype would lose the ones.
    x = torch.tensor([4096.0, 1.0, 1.0, 2.0], dtype=dtype).view(1, 1, 4, 1)
    pooled = pool_blocks(x, 4)
    assert pooled.dtype == torch.float32
    assert pooled.item() == 1025.0


def test_probs_hand_worked() -> None:
    # Pooled queries 2 and 0, pooled keys 0 and ln 3, D = 1: scores [[0, 2 ln 3], [0, 0]].
    q = torch.tensor([1.0, 3.0, 0.0]).view(1, 1, 3, 1)
    k = torch.tensor([-1.0, 1.0, math.log(3)]).view(1, 1, 3, 1)
    probs = block_probs(pool_blocks(q, 2), pool_blocks(k, 2))
    torch.testing.assert_close(probs[0, 0], torch.tensor([[0.1, 0.9], [0.5, 0.5]]))


def test_probs_with_blocks_of_one_token_are_attention() -> None:
    q, k = random_tokens(2, 3, 9, 8), random_tokens(2, 3, 9, 8, seed=1)
    expected = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    torch.testing.assert_close(block_probs(pool_blocks(q, 1), pool_blocks(k, 1)), expected)


def test_probs_stay_float32_under_autocast() -> None:
    q, k = pool_blocks(random_tokens(1, 2, 70, 8), 32), pool_blocks(random_tokens(1, 2, 70, 8, seed=1), 16)
    plain = block_probs(q, k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block_probs(q, k), plain)
    assert plain.dtype == torch.float32
    assert plain.shape == (1, 2, 3, 5)
    torch.testing.assert_close(plain.sum(-1), torch.ones(1, 2, 3))


@pytest.mark.parametrize("rows", [1, 3])
def test_probs_in_chunks_of_rows_are_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = random_tokens(2, 3, 7, 8), random_tokens(2, 3, 9, 8, seed=1)
    together = block_probs(q, k)
    monkeypatch.setattr(pooling, "CHUNK_BYTES", 4 * 2 * 3 * 9 * rows)
    torch.testing.assert_close(block_probs(q, k), together, rtol=1e-6, atol=0)
