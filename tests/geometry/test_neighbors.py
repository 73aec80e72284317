"""Nearest neighbours against brute force: every shape of the tree, ties, precision far from the origin."""

from __future__ import annotations

import pytest
import torch

from hess_plugin.geometry import neighbors
from hess_plugin.geometry.neighbors import nearest_neighbors, nearest_of_all


def brute_force(query: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All distances, in float64; torch.min promises no order among equals, so the lowest index is sought."""
    squared = (query.double()[:, None] - reference.double()[None]).square().sum(-1)
    least = squared.amin(1)
    return least, torch.where(squared == least[:, None], torch.arange(len(reference)), len(reference)).amin(1)


def cloud(count: int, kind: str) -> torch.Tensor:
    points = torch.randn(count, 3)
    if kind == "surface":
        points[:, 2] = torch.sin(3 * points[:, 0])
    if kind == "clusters":
        points = 0.01 * points + torch.randint(0, 2, (count, 3))
    if kind == "far point":
        points[0] = 1e6
    return points


@pytest.mark.parametrize(
    ("queries", "references"), [(1, 1), (63, 111), (111, 16), (256, 17), (40, 65), (100, 3001)]
)
@pytest.mark.parametrize("kind", ["ball", "surface", "clusters", "far point"])
def test_equals_brute_force(queries: int, references: int, kind: str) -> None:
    torch.manual_seed(queries)
    query, reference = torch.randn(queries, 3), cloud(references, kind)
    squared, index = nearest_neighbors(query, reference)
    expected_squared, expected_index = brute_force(query, reference)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(squared, expected_squared.float())
    assert squared.dtype == torch.float32
    assert index.dtype == torch.int64
    assert torch.equal(nearest_of_all(query.double(), reference.double()), expected_index)


@pytest.mark.parametrize("pairs", [16, 50, 1000])
def test_parts_change_nothing(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, reference = torch.randn(300, 3), cloud(2000, "surface")
    expected = brute_force(query, reference)[1]
    monkeypatch.setitem(neighbors._PAIRS, "cpu", pairs)
    monkeypatch.setattr(neighbors, "_BREADTH", 50 * pairs)  # from less than a row to several
    assert torch.equal(nearest_neighbors(query, reference)[1], expected)
    assert torch.equal(nearest_of_all(query.double(), reference.double()), expected)


def test_the_first_of_equally_near_points_is_named() -> None:
    """A lattice, every point of it twice, and queries in the middle of its edges, faces and cells."""
    axis = torch.arange(6.0)
    lattice = torch.cartesian_prod(axis, axis, axis).repeat(2, 1)
    shuffled = lattice[torch.randperm(len(lattice), generator=torch.Generator().manual_seed(0))]
    query = torch.cartesian_prod(*[torch.arange(0, 5.5, 0.5)] * 3)
    expected = brute_force(query, shuffled)[1]
    assert torch.equal(nearest_neighbors(query, shuffled)[1], expected)
    assert torch.equal(nearest_of_all(query.double(), shuffled.double()), expected)


def test_most_points_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    looked_at = 0
    compare = neighbors._Search._compare

    def counted(search: neighbors._Search, rows: torch.Tensor, leaves: torch.Tensor) -> None:
        nonlocal looked_at
        looked_at += len(rows) * search.leaves.shape[1]
        compare(search, rows, leaves)

    monkeypatch.setattr(neighbors._Search, "_compare", counted)
    reference = cloud(20000, "surface")
    nearest_neighbors(reference[::20] + 0.01 * torch.randn(1000, 3), reference)
    assert 1000 <= looked_at < 0.01 * 1000 * 20000


def test_small_distances_far_from_the_origin_are_exact() -> None:
    """The expanded form |q|² - 2 q·r + |r|² would give 0 or noise here in float32."""
    reference = torch.tensor([[1000.0, 2000.0, -3000.0], [1000.5, 2000.0, -3000.0]])
    query = reference + torch.tensor([0.0, 2.0**-10, 0.0])
    squared, index = nearest_neighbors(query, reference)
    assert index.tolist() == [0, 1]
    assert squared.tolist() == [2.0**-20, 2.0**-20]


def test_neighbors_of_hand_placed_points() -> None:
    reference = torch.tensor([[0.0, 0, 0], [0, 3, 0], [0, 0, 7]])
    query = torch.tensor([[0.0, 2, 0], [4, 0, 7], [0, 0, 0]])
    squared, index = nearest_neighbors(query, reference)
    assert index.tolist() == [1, 2, 0]
    assert squared.tolist() == [1.0, 16.0, 0.0]


def test_empty_query_and_gradients() -> None:
    reference = torch.randn(4, 3, requires_grad=True)
    squared, index = nearest_neighbors(torch.zeros(0, 3), reference)
    assert squared.shape == index.shape == (0,)
    squared, _ = nearest_neighbors(torch.randn(5, 3, requires_grad=True), reference)
    assert not squared.requires_grad


@pytest.mark.parametrize(
    ("query", "reference", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(0, 3), "reference holds no points"),
        (torch.zeros(2, 2), torch.zeros(1, 3), r"query must be \[N, 3\], got \[2, 2\]"),
        (torch.zeros(2, 3), torch.zeros(1, 1, 3), r"reference must be \[N, 3\], got \[1, 1, 3\]"),
        (torch.full((2, 3), torch.nan), torch.zeros(1, 3), "query holds NaN"),
        (torch.zeros(2, 3), torch.full((1, 3), torch.inf), "reference holds NaN or infinite"),
    ],
)
def test_neighbors_bad_input(query: torch.Tensor, reference: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(query, reference)
