"""Nearest neighbours against brute force, precision far from the origin, bad input."""

from __future__ import annotations

import pytest
import torch

from hess_plugin.geometry.neighbors import nearest_neighbors


def brute_force(query: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    squared = (query.double()[:, None] - reference.double()[None]).square().sum(-1)
    return squared.min(1)


@pytest.mark.parametrize(("queries", "references"), [(1, 1), (63, 111), (111, 63), (256, 1)])
@pytest.mark.parametrize("chunk", [None, 1, 32, 63, 1000])
def test_equals_brute_force(queries: int, references: int, chunk: int | None) -> None:
    torch.manual_seed(queries)
    query, reference = torch.randn(queries, 3), torch.randn(references, 3)
    squared, index = nearest_neighbors(query, reference, chunk=chunk)
    expected_squared, expected_index = brute_force(query, reference)
    assert torch.equal(index, expected_index)
    torch.testing.assert_close(squared, expected_squared.float())
    assert squared.dtype == torch.float32
    assert index.dtype == torch.int64


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
    squared, index = nearest_neighbors(query, reference, chunk=2)
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
