"""RANSAC over pairs of points: known similarities among wrong pairs, scale, degenerate pairs."""

from __future__ import annotations

import pytest
import torch
from clouds import room, similarity

from hess_plugin.geometry.consensus import AlignmentError, align_by_consensus


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("scale", [0.6, 1.0, 1.8])
def test_known_similarity_among_wrong_pairs(wrong: float, scale: float) -> None:
    truth = similarity(scale)
    source = room(300)
    target = truth.apply(source)
    false = torch.arange(300) < wrong * 300
    target[false] = target[false][
        torch.randperm(int(false.sum()), generator=torch.Generator().manual_seed(1))
    ]
    found = align_by_consensus(source, target, distance=0.02)
    torch.testing.assert_close(found.transform.apply(source), truth.apply(source), atol=1e-2, rtol=0)
    assert found.transform.scale.item() == pytest.approx(scale, rel=1e-2)
    assert torch.linalg.det(found.transform.rotation).item() == pytest.approx(1)
    assert 1 - wrong <= found.fitness < 1 - wrong + 0.05
    assert found.rmse < 0.02


def test_three_pairs_by_hand() -> None:
    """A quarter turn about z and a half up; all agree exactly."""
    source = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]).double()
    target = torch.tensor([[0.0, 0, 0.5], [0, 1, 0.5], [-2, 0, 0.5]]).double()
    found = align_by_consensus(source, target, distance=0.1)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(found.transform.rotation, turn)
    assert found.transform.scale.item() == pytest.approx(1)
    torch.testing.assert_close(found.transform.translation, torch.tensor([0.0, 0, 0.5]).double())
    assert (found.fitness, found.rmse) == (1, pytest.approx(0, abs=1e-9))


def test_a_seed_decides() -> None:
    source, target = torch.randn(2, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    runs = [align_by_consensus(source, target, 0.3, seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].transform.rotation, runs[1].transform.rotation)
    assert not torch.equal(runs[0].transform.rotation, runs[2].transform.rotation)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), "only 2 features could be matched"),
        (torch.zeros(9, 3), torch.randn(9, 3), "no three of 9"),
        (room(50), 9 * room(50), "no three of 50"),  # beyond the range of scales
        (torch.arange(9.0)[:, None] * torch.ones(3), torch.arange(9.0)[:, None] * torch.ones(3), "one line"),
    ],
)
def test_consensus_refused(source: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        align_by_consensus(source.double(), target.double(), 0.01)
