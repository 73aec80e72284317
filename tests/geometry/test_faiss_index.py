"""The Faiss index against exact search: recall, precision, the same bits always, empty cells, bad input."""

from __future__ import annotations

import sys

import pytest
import torch
from clouds import outputs_by_threads, room

from hess_plugin.geometry import faiss_index
from hess_plugin.geometry.faiss_index import FaissIndex
from hess_plugin.geometry.neighbors import nearest_neighbors


def clustered(count: int, seed: int) -> torch.Tensor:
    """Points in 50 small clusters, where cells are uneven."""
    centers = torch.randn(50, 3, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(50, (count,), generator=generator)
    return centers[kind] + 0.03 * torch.randn(count, 3, generator=generator)


@pytest.mark.parametrize(
    ("references", "centroids"), [(1, 1), (39, 1), (78, 2), (5000, 128), (200_000, 4096)]
)
def test_number_of_centroids(references: int, centroids: int) -> None:
    index = FaissIndex(room(references).float())
    assert index._index.nlist == centroids
    assert index._index.nprobe == min(16, centroids)


@pytest.mark.parametrize("count", [1, 100, 3000])
def test_equals_exact_search_when_all_cells_are_probed(count: int) -> None:
    reference, query = clustered(count, 0), clustered(500, 1)
    index = FaissIndex(reference, num_probes=4096)
    squared, found = index.nearest(query)
    expected_squared, expected = nearest_neighbors(query, reference)
    assert torch.equal(found, expected)
    assert torch.equal(squared, expected_squared)
    assert squared.dtype == torch.float32
    assert found.dtype == torch.int64
    assert index.recall(query) == 1


def test_recall_grows_with_the_probes_and_is_what_it_says() -> None:
    reference, query = clustered(20_000, 0), clustered(800, 1)
    recalls = []
    for probes in (1, 4, 16):
        index = FaissIndex(reference, num_probes=probes)
        share = (index.nearest(query)[0] <= nearest_neighbors(query, reference)[0]).double().mean().item()
        assert index.recall(query) == pytest.approx(share)  # fewer queries than the sample: all are taken
        recalls.append(share)
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.97
    assert recalls[2] > 0.99


def test_recall_is_of_a_seeded_sample() -> None:
    index = FaissIndex(clustered(20_000, 0), num_probes=1)
    query = clustered(3000, 1)
    assert index.recall(query, sample=50) == index.recall(query, sample=50)
    assert len({index.recall(query, sample=50, seed=seed) for seed in range(5)}) > 1


def test_far_from_the_origin_nothing_is_lost() -> None:
    """float32 has steps of 64 at 1e9, the centred points have not."""
    shift = torch.tensor([1e9, -2e9, 3e9]).double()
    reference, query = room(3000, 1) + shift, room(200, 2) + shift
    squared, found = FaissIndex(reference, num_probes=4096).nearest(query)
    assert torch.equal(found, nearest_neighbors(query, reference)[1])
    assert squared.dtype == torch.float64


def test_a_query_between_empty_cells_is_searched_exhaustively() -> None:
    """Cells of two far groups, of which one is taken out again."""
    far = torch.randn(2000, 3) + torch.tensor([500.0, 0, 0])
    index = FaissIndex(torch.cat([torch.randn(2000, 3), far]), num_probes=1)
    index._index.reset()
    index.reference = far
    index._index.add(index._centred(far))
    query = torch.randn(5, 3)
    assert (index._index.search(index._centred(query), 1)[1] < 0).all()
    squared, found = index.nearest(query)
    assert torch.equal(found, nearest_neighbors(query, far)[1])
    assert torch.isfinite(squared).all()


def test_no_gradients_pass() -> None:
    reference = room(300).requires_grad_()
    squared, _ = FaissIndex(reference).nearest(room(5, 1).requires_grad_())
    assert not squared.requires_grad


def test_the_same_index_for_any_number_of_threads() -> None:
    code = """
import faiss, hashlib
from clouds import room
from hess_plugin.geometry.faiss_index import FaissIndex
for seed in (0, 0, 1):
    index = FaissIndex(room(8_000).float(), seed=seed)
    found = index.nearest(room(500, 1).float())[1].numpy().tobytes()
    print(hashlib.sha256(faiss.serialize_index(index._index).tobytes() + found).hexdigest())
"""
    one, two = (printed.split() for printed in outputs_by_threads(code))
    assert one == two
    assert one[0] == one[1] != one[2]


@pytest.mark.parametrize(
    ("reference", "query", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(1, 3), "reference holds no points"),
        (torch.zeros(3, 2), torch.zeros(1, 3), r"reference must be \[N, 3\], got \[3, 2\]"),
        (torch.full((3, 3), torch.nan), torch.zeros(1, 3), "reference holds NaN"),
        (torch.zeros(3, 3), torch.full((1, 3), torch.inf), "query holds NaN or infinite"),
    ],
)
def test_faiss_bad_input(reference: torch.Tensor, query: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaissIndex(reference).nearest(query)


def test_missing_faiss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'"hess-plugin\[faiss\]".* neighbors="exact", which works without'):
        faiss_index.FaissIndex(torch.zeros(3, 3))
