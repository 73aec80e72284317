"""The selection kernels against plain definitions, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

triton_selection = pytest.importorskip("hess_attention.triton_selection")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def probabilities(width: int, spread: float, *, ties: bool = False, rows: tuple[int, ...] = (2, 3)) -> Tensor:
    """Rows that sum to 1, flat for a small spread and peaked for a large one; ties where asked for."""
    scores = torch.randn(*rows, width, generator=torch.Generator().manual_seed(width)) * spread
    probs = scores.softmax(-1)
    if ties:
        probs = (probs * 64).round().clamp(min=1) / 64
        probs = probs / probs.sum(-1, keepdim=True)
    return probs.to(DEVICE)


def kept_by_sorting(probs: Tensor, threshold: float, rule: str) -> Tensor:
    """The rules in float64, one row at a time as they are worded."""
    counts = []
    for row in probs.flatten(0, -2).double().cpu():
        mass, count = 0.0, 0
        for value in sorted(row.tolist(), reverse=True):
            if rule == "cover" and mass >= threshold - 1e-6:
                break
            if rule == "sparse-vggt" and mass + value > threshold + 1e-5:
                break
            mass, count = mass + value, count + 1
        counts.append(max(count, 1))
    return torch.tensor(counts).view(probs.shape[:-1])


SHAPES = [(1, 1.0), (5, 5.0), (64, 0.1), (67, 1.0), (300, 5.0), (300, 50.0)]


class TestPool:
    @pytest.mark.parametrize(
        ("tokens", "block", "dim"), [(1, 16, 16), (64, 64, 32), (77, 16, 24), (130, 128, 64)]
    )
    def test_means_of_what_is_there(self, tokens: int, block: int, dim: int) -> None:
        x = torch.randn(2, 3, tokens, dim, device=DEVICE).half()
        expected = torch.stack([part.double().mean(2) for part in x.split(block, dim=2)], dim=2)
        torch.testing.assert_close(
            triton_selection.pool_blocks(x, block).double(), expected, rtol=1e-6, atol=1e-6
        )

    def test_any_strides(self) -> None:
        x = torch.randn(2, 50, 3, 16, device=DEVICE).transpose(1, 2)
        assert torch.equal(
            triton_selection.pool_blocks(x, 16), triton_selection.pool_blocks(x.contiguous(), 16)
        )


class TestCount:
    @pytest.mark.parametrize("rule", ["cover", "sparse-vggt"])
    @pytest.mark.parametrize("threshold", [0.3, 0.95])
    @pytest.mark.parametrize(("width", "spread"), SHAPES)
    def test_as_the_rule_is_worded(self, width: int, spread: float, threshold: float, rule: str) -> None:
        probs = probabilities(width, spread)
        counts = triton_selection.count_blocks(probs, 1, threshold, rule).cpu()
        expected = kept_by_sorting(probs, threshold, rule)
        assert (counts - expected).abs().max() <= 1  # float32 sums may fall on the other side of a threshold
        assert (counts != expected).double().mean() <= 0.2

    @pytest.mark.parametrize("rule", ["cover", "sparse-vggt"])
    def test_ties_are_counted_one_by_one(self, rule: str) -> None:
        even = torch.full((1, 8), 1 / 8, device=DEVICE)
        counts = [int(triton_selection.count_blocks(even, 1, tau, rule)) for tau in (0.2, 0.5, 0.55, 1.0)]
        assert counts == ([2, 4, 5, 8] if rule == "cover" else [1, 4, 4, 8])

    def test_the_ratio_is_a_lower_bound(self) -> None:
        probs = probabilities(67, 50.0)
        assert (triton_selection.count_blocks(probs, 9, 0.5, "cover") >= 9).all()
        assert (triton_selection.count_blocks(probs, 9, 0.0, "cover") == 9).all()


class TestSelect:
    @pytest.mark.parametrize("ties", [False, True])
    @pytest.mark.parametrize(("width", "spread"), SHAPES)
    def test_the_most_probable_lowest_index_first(self, width: int, spread: float, ties: bool) -> None:
        probs = probabilities(width, spread, ties=ties)
        counts = torch.randint(1, width + 1, probs.shape[:-1], generator=torch.Generator().manual_seed(0))
        canary = torch.full(probs.shape, -7, dtype=torch.int32, device=DEVICE)
        listed = triton_selection.select_blocks(probs, counts.int().to(DEVICE), canary).cpu()
        order = probs.cpu().argsort(dim=-1, descending=True, stable=True)
        for row, count, best in zip(
            listed.flatten(0, -2), counts.flatten(), order.flatten(0, -2), strict=True
        ):
            assert row[:count].tolist() == sorted(best[:count].tolist())
            assert (row[count:] == -7).all()

    def test_zeros_are_chosen_last(self) -> None:
        probs = torch.tensor([[0.0, 0.5, 0.0, 0.5]], device=DEVICE)
        chosen = [
            triton_selection.select_blocks(probs, torch.tensor([n], dtype=torch.int32, device=DEVICE))[0, :n]
            for n in (1, 2, 3, 4)
        ]
        assert [row.tolist() for row in chosen] == [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3]]

    def test_same_bits_twice(self) -> None:
        probs = probabilities(300, 1.0)
        counts = triton_selection.count_blocks(probs, 1, 0.7, "cover")
        assert torch.equal(counts, triton_selection.count_blocks(probs, 1, 0.7, "cover"))

    def test_bad_input(self) -> None:
        counts = torch.ones(2, dtype=torch.int32)
        with pytest.raises(ValueError, match=r"contiguous float32, got torch\.float16"):
            triton_selection.select_blocks(torch.ones(2, 4).half(), counts)
        with pytest.raises(ValueError, match="65536 key blocks, at most 32768 fit"):
            triton_selection.select_blocks(torch.ones(2, 65536), counts)


def test_prediction_keeps_probable_mass() -> None:
    """Counts and lists together: what is kept covers τ, and one block less would not."""
    probs = probabilities(300, 5.0)
    counts = triton_selection.count_blocks(probs, 1, 0.8, "cover")
    listed = triton_selection.select_blocks(probs, counts).long()
    shown = torch.arange(300, device=DEVICE) < counts[..., None]
    values = probs.double().gather(-1, listed.masked_fill(~shown, 0)).masked_fill(~shown, math.inf)
    kept = values.masked_fill(~shown, 0).sum(-1)
    assert (kept >= 0.8 - 1e-6).all()
    assert (kept - values.amin(-1) < 0.8 + 1e-6).all()
