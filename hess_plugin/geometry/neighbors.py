"""Exact nearest neighbours in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def nearest_neighbors(query: Tensor, reference: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The nearest reference point of every query point, by exhaustive search.

    The search runs in float64, so a neighbour is the true one up to that rounding; the distance is then taken
    from the difference of the two points and suffers no cancellation. Deterministic. No gradient passes.

    Args:
        query: [N, 3].
        reference: [M, 3], M >= 1.
        chunk: points per side of the tiles of distances held at a time, 8 · chunk² bytes; None takes one that
            fits a CPU's cache or fills a GPU.

    Returns:
        Squared distances [N] in the dtype of `query`, and the indices [N] int64 of the neighbours.

    Raises:
        ValueError: for points that are not [N, 3] or not finite, or an empty reference.

    Example:
        >>> corner_and_far = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
        >>> nearest_neighbors(torch.tensor([[1.0, 2.0, 2.0], [8.0, 0.0, 0.0]]), corner_and_far)
        (tensor([9., 1.]), tensor([0, 1]))
    """
    _check_points("query", query)
    _check_points("reference", reference)
    if len(reference) == 0:
        raise ValueError("reference holds no points, so nothing can be nearest; pass at least one.")
    if chunk is None:
        chunk = 1024 if query.device.type == "cpu" else 8192
    # |q - r|² and |r|² - 2 q·r have their minimum at the same r, and the latter is one matrix product.
    origin = reference.double().mean(0)
    centered = reference.double() - origin
    left = torch.nn.functional.pad(-2 * (query.double() - origin), (0, 1), value=1)
    right = torch.cat([centered, centered.square().sum(-1, keepdim=True)], dim=-1)
    tiles = right.split(chunk)
    index = torch.cat([_nearest_in_tiles(rows, tiles) for rows in left.split(chunk)])
    return (query - reference[index]).square().sum(-1), index


def _nearest_in_tiles(rows: Tensor, tiles: tuple[Tensor, ...]) -> Tensor:
    """Column of the least product of each row with the rows of all tiles, [len(rows)] int64."""
    best, index = (rows @ tiles[0].T).min(-1)
    start = len(tiles[0])
    for tile in tiles[1:]:
        value, position = (rows @ tile.T).min(-1)
        closer = value < best
        best = torch.where(closer, value, best)
        index = torch.where(closer, start + position, index)
        start += len(tile)
    return index


def _check_points(name: str, points: Tensor) -> None:
    if points.ndim != 2 or points.shape[-1] != 3:
        raise ValueError(f"{name} must be [N, 3], got {list(points.shape)}.")
    if not torch.isfinite(points).all():
        raise ValueError(f"{name} holds NaN or infinite values; leave those points out.")
