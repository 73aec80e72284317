"""Exact nearest neighbours in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAF = 16  # reference points in a leaf, at most
_CHILDREN = 4  # boxes of one level in a box of the level above
_BEAM = 4  # boxes of a level that are looked into for a first bound
_PAIRS = {"cpu": 2**15, "cuda": 2**20}  # of point and box held at a time: a CPU's cache, a GPU's breadth
_EXHAUSTIVE = 2**28  # pairs on a GPU up to which all are compared: the tree takes some 1,500 launches
_BREADTH = 2**21  # of these pairs at a time: what stays in a GPU's cache
_NEVER = torch.iinfo(torch.int64).max  # no index


@torch.no_grad()
def nearest_neighbors(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest reference point of every query point.

    The search is exact: it goes down a tree of bounding boxes and leaves out a box only when it lies farther
    than points already found. On a GPU small clouds are compared point by point, with the same result. All is
    in float64, so a neighbour is the true one up to that rounding.
    Deterministic. No gradient passes.

    Args:
        query: [N, 3].
        reference: [M, 3], M >= 1.

    Returns:
        Squared distances [N] in the dtype of `query`, from the difference of the two points, and the indices
        [N] int64 of the neighbours: of points at the same distance the first.

    Raises:
        ValueError: for points that are not [N, 3] or not finite, or an empty reference.

    Example:
        >>> corner_and_far = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
        >>> nearest_neighbors(torch.tensor([[1.0, 2.0, 2.0], [8.0, 0.0, 0.0]]), corner_and_far)
        (tensor([9., 1.]), tensor([0, 1]))
    """
    check_points(query, reference)
    if query.is_cuda and len(query) * len(reference) <= _EXHAUSTIVE:
        index = nearest_of_all(query.double(), reference.double())
    else:
        index = _Search(query.double(), reference.double()).run(len(query))
    return (query - reference[index]).square().sum(-1), index


def nearest_of_all(query: Tensor, reference: Tensor) -> Tensor:
    """Index [N] int64 of the nearest reference point, the first of several, by comparing all pairs."""
    found = [torch.empty(0, dtype=torch.int64, device=query.device)]
    for part in query.split(max(1, _BREADTH // len(reference))):
        x, y, z = (part[:, None, axis] - reference[:, axis] for axis in range(3))
        found.append((x * x + y * y + z * z).argmin(1))
    return torch.cat(found)


def check_points(query: Tensor, reference: Tensor) -> None:
    """Refuse what is not two clouds of finite points, the second not empty."""
    for name, points in (("query", query), ("reference", reference)):
        if points.ndim != 2 or points.shape[-1] != 3:
            raise ValueError(f"{name} must be [N, 3], got {list(points.shape)}.")
        if not torch.isfinite(points).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave those points out.")
    if len(reference) == 0:
        raise ValueError("reference holds no points, so nothing can be nearest; pass at least one.")


class _Search:
    """Query points on their way down the levels of boxes around small leaves of reference points.

    A box is [6]: its lower corner and its negated upper corner, so that the minimum merges boxes.
    """

    def __init__(self, query: Tensor, reference: Tensor) -> None:
        self.order = _halved(query, _LEAF).flatten()  # neighbours in space are neighbours in memory
        self.query = query[self.order]
        self.ids = _halved(reference, _LEAF)  # [leaves, points of a leaf]
        self.leaves = reference[self.ids]
        self.levels = [torch.cat([self.leaves.amin(1), -self.leaves.amax(1)], dim=-1)]  # from the top
        while len(self.levels[0]) > _CHILDREN:
            self.levels.insert(0, self.levels[0].unflatten(0, (-1, _CHILDREN)).amin(1))
        self.best = query.new_full(self.order.shape, torch.inf)  # squared distances
        self.index = torch.full_like(self.order, _NEVER)
        self.children = torch.arange(_CHILDREN, device=query.device)
        self.pairs = _PAIRS[query.device.type]

    def run(self, count: int) -> Tensor:
        """Index [count] int64 of the reference point nearest to each of the `count` query points."""
        rows = torch.arange(len(self.order), device=self.order.device)
        top = torch.arange(len(self.levels[0]), device=self.order.device)
        for part in rows.split(self.pairs // (_BEAM * _CHILDREN)):
            self._bound(part, top)
            self._descend(part.repeat_interleave(len(top)), top.repeat(len(part)), level=0)
        return self.index.new_empty(count).index_copy_(0, self.order, self.index)

    def _bound(self, rows: Tensor, top: Tensor) -> None:
        """Compare points with the leaves below the `_BEAM` nearest boxes of every level."""
        boxes = top.expand(len(rows), -1)
        for depth, level in enumerate(self.levels):
            if depth:
                boxes = (boxes[..., None] * _CHILDREN + self.children).flatten(1)
            gaps = _gaps(self.query[rows][:, None], level[boxes])
            nearest = gaps.topk(min(_BEAM, boxes.shape[1]), largest=False, sorted=False).indices
            boxes = boxes.gather(1, nearest)
        self._compare(rows.repeat_interleave(boxes.shape[1]), boxes.flatten())

    def _descend(self, rows: Tensor, boxes: Tensor, level: int) -> None:
        """Look into the boxes of a level, one for each of `rows`, that may hold a nearer point."""
        near = _gaps(self.query[rows], self.levels[level][boxes]) <= self.best[rows]
        rows, boxes = rows[near], boxes[near]
        for part, inside in zip(rows.split(self.pairs), boxes.split(self.pairs), strict=True):
            if level == len(self.levels) - 1:
                self._compare(part, inside)
            else:
                below = (inside[:, None] * _CHILDREN + self.children).flatten()
                self._descend(part.repeat_interleave(_CHILDREN), below, level + 1)

    def _compare(self, rows: Tensor, leaves: Tensor) -> None:
        """Compare one point with all points of one leaf, for each pair of the two."""
        squared = _norms(self.query[rows][:, None] - self.leaves[leaves])
        before = self.best[rows]
        self.best.scatter_reduce_(0, rows, squared.amin(1), "amin")
        now = self.best[rows]
        self.index[rows[now < before]] = _NEVER  # named a point that is no longer the nearest
        ids = torch.where(squared == now[:, None], self.ids[leaves], _NEVER).amin(1)
        self.index.scatter_reduce_(0, rows, ids, "amin")


def _halved(points: Tensor, size: int) -> Tensor:
    """Indices [leaves, n] of points that lie together, n at most `size`, the number of leaves a power of two.

    The cloud is halved across its longest side, again and again. The last point fills the leaves up.
    """
    leaves = 1
    while len(points) > leaves * size:
        leaves *= 2
    ids = torch.arange(len(points), device=points.device)
    ids = torch.cat([ids, ids[-1:].expand(-len(ids) % leaves)])[None]
    while len(ids) < leaves:
        part = points[ids]
        longest = (part.amax(1) - part.amin(1)).argmax(-1)
        along = part.gather(2, longest[:, None, None].expand(*ids.shape, 1))[..., 0]
        ids = ids.gather(1, along.argsort(dim=1, stable=True)).view(2 * len(ids), -1)
    return ids


def _gaps(points: Tensor, boxes: Tensor) -> Tensor:
    """Squared distances [...] of points [..., 3] to boxes [..., 6]; 0 inside.

    Never above that to a point in the box, rounding included: both are computed in the same steps, each of
    which is monotone.
    """
    return _norms(torch.maximum(boxes[..., :3] - points, points + boxes[..., 3:]).clamp(0))


def _norms(vectors: Tensor) -> Tensor:
    """Squared lengths [...] of vectors [..., 3]."""
    x, y, z = vectors.unbind(-1)
    return x * x + y * y + z * z
