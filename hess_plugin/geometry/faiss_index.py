"""Approximate nearest neighbours by Faiss, as the paper searches them (appendix B.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .neighbors import check_points, nearest_neighbors

NUM_CENTROIDS = 4096
NUM_PROBES = 16
_POINTS_PER_CENTROID = 39  # least that k-means asks for; also the most it is given, see `FaissIndex`


class FaissIndex:
    """An IVFFlat index of reference points under L2: cells around centroids, of which few are searched.

    4096 centroids and 16 probes; fewer centroids where there are fewer than 39 points for each, one for every
    39 points. k-means runs on the CPU on at most 39 points per centroid, drawn by seed: it took most of the
    time, and finer cells make no neighbour nearer. With faiss-gpu and points on a GPU the trained index is
    moved there before points are added. Coordinates are float32 and centred, so that a far origin costs no
    precision.

    Deterministic: the same neighbours for the same points, queries and seed, for any number of threads.

    Args:
        reference: [M, 3], M >= 1.
        num_probes: cells searched for a query; as many as there are centroids make the search exhaustive.
        seed: of k-means.

    Raises:
        ValueError: for points that are not [M, 3] or not finite, or an empty reference.
        ImportError: Faiss is missing.
    """

    def __init__(self, reference: Tensor, num_probes: int = NUM_PROBES, seed: int = 0) -> None:
        check_points(reference.new_zeros(0, 3), reference)
        faiss = _faiss()
        self.reference = reference.detach()
        self.origin = self.reference.double().mean(0)
        points = self._centred(self.reference)
        centroids = max(1, min(NUM_CENTROIDS, len(points) // _POINTS_PER_CENTROID))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(3), 3, centroids, faiss.METRIC_L2)
        index.nprobe = min(num_probes, centroids)
        index.cp.seed = seed % 2**31  # a C int
        index.cp.max_points_per_centroid = _POINTS_PER_CENTROID
        index.train(points)
        if reference.is_cuda and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus():
            self._resources = faiss.StandardGpuResources()  # must live as long as the index
            index = faiss.index_cpu_to_gpu(self._resources, reference.device.index or 0, index)
        index.add(points)
        self._index: Any = index

    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances [N] and indices [N] of reference points near `query` [N, 3], mostly the nearest.

        As `nearest_neighbors` returns them; see `recall`. Where a query's cells are empty, all are searched.
        """
        check_points(query, self.reference)
        found = torch.from_numpy(self._index.search(self._centred(query), 1)[1][:, 0]).to(query.device)
        missing = found < 0
        if missing.any():
            found[missing] = nearest_neighbors(query[missing], self.reference)[1]
        return (query - self.reference[found]).detach().square().sum(-1), found

    def recall(self, query: Tensor, sample: int = 1000, seed: int = 0) -> float:
        """Share of a seeded sample of `query` [N, 3], N >= 1, for which the index finds a nearest point."""
        generator = torch.Generator().manual_seed(seed)
        drawn = query[torch.randperm(len(query), generator=generator)[:sample].to(query.device)]
        return float((self.nearest(drawn)[0] <= nearest_neighbors(drawn, self.reference)[0]).double().mean())

    def _centred(self, points: Tensor) -> Any:
        """Coordinates about the reference's mean, as Faiss takes them."""
        return (points.detach().double() - self.origin).float().cpu().numpy()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'neighbors="faiss" needs Faiss; pip install "hess-plugin[faiss]" (or [gpu]), or search with '
            'neighbors="exact", which works without.'
        ) from error
    return faiss
