"""Similarity from pairs of points of which many are wrong: RANSAC."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .similarity import Similarity, umeyama

_TRIPLES = 50_000  # drawn by RANSAC
_CANDIDATES = 5_000  # of them that are tried, at most, after what cannot be right is left out
_EDGE_RATIO = 0.8  # the three edges of a triple must have grown alike, to this ratio
_SCALE_RANGE = 2.0  # most that the scale may differ from its first guess, as a factor


class AlignmentError(ValueError):
    """Two clouds, or a prediction and its ground truth, cannot be aligned well enough to be compared."""


@dataclass(frozen=True)
class Alignment:
    """A transform from source to target and how well the clouds agree under it."""

    transform: Similarity  # float64
    fitness: float  # share of what was compared that agrees: pairs of features, or points (ICP)
    rmse: float  # root mean square distance of what agrees, in units of the target


def align_by_consensus(source: Tensor, target: Tensor, distance: float, seed: int = 0) -> Alignment:
    """Similarity that the most of some doubtful pairs of points agree with, by RANSAC.

    Triples of pairs are drawn. One whose three edges have grown alike gives a similarity, and the one that
    brings most sources to their targets wins. Least squares over the pairs that agree then polishes it.

    Open3D's RANSAC is not used: it counts the sources that end near any target. With a free scale it shrinks
    the source into a single point, which is near one. Pairs cannot be won that way.

    Args:
        source: [K, 3].
        target: [K, 3], row i may correspond to row i of `source`.
        distance: of a source brought to its target at which the pair no longer agrees.
        seed: of the draw.

    Returns:
        `Alignment` whose fitness is the share of pairs that agree.

    Raises:
        AlignmentError: fewer than three pairs, or no three that agree.
    """
    if len(source) < 3:
        raise AlignmentError(f"only {len(source)} features could be matched; an alignment needs at least 3.")
    generator = torch.Generator().manual_seed(seed)
    triples = torch.randint(len(source), (_TRIPLES, 3), generator=generator)
    edges = [(cloud[triples] - cloud[triples.roll(1, 1)]).norm(dim=-1) for cloud in (source, target)]
    growth = edges[1] / edges[0]  # NaN or infinite where a point was drawn twice: never plausible
    scales = growth.log().mean(1).exp()
    plausible = (growth.amin(1) > _EDGE_RATIO * growth.amax(1)) & (growth.amin(1) > 0)
    plausible &= (scales > 1 / _SCALE_RANGE) & (scales < _SCALE_RANGE)
    triples, scales = triples[plausible][:_CANDIDATES], scales[plausible][:_CANDIDATES]
    frames = [_frames(cloud[triples]) for cloud in (source, target)]
    turned = scales[:, None, None] * (frames[1] @ frames[0].mT)
    shifts = target[triples].mean(1) - (turned @ source[triples].mean(1)[..., None])[..., 0]
    votes = [
        ((source @ turn.mT + shift[:, None] - target).square().sum(-1) < distance**2).sum(1)
        for turn, shift in zip(turned.split(512), shifts.split(512), strict=True)
    ]
    if not len(triples):
        raise AlignmentError(f"no three of {len(source)} matched features agree on one scale and turn.")
    winner = int(torch.cat(votes).argmax())
    transform = Similarity(scales[winner], turned[winner] / scales[winner], shifts[winner])
    return _polished(transform, source, target, distance)


def _frames(triples: Tensor) -> Tensor:
    """Right-handed orthonormal axes [K, 3, 3] (columns) of triangles [K, 3, 3]; zeros where degenerate."""
    first = torch.nn.functional.normalize(triples[:, 1] - triples[:, 0], dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(first, triples[:, 2] - triples[:, 0]), dim=-1)
    return torch.stack([first, normal, torch.linalg.cross(first, normal)], dim=-1)


def _polished(transform: Similarity, source: Tensor, target: Tensor, distance: float) -> Alignment:
    """Least squares over the pairs that agree, a few times, for more pairs may agree then."""
    for _ in range(5):
        squared = (transform.apply(source) - target).square().sum(-1)
        agree = squared < distance**2
        try:
            transform = umeyama(source[agree], target[agree])
        except ValueError as error:
            raise AlignmentError(f"the matched features do not determine an alignment: {error}") from error
    squared = (transform.apply(source) - target).square().sum(-1)
    agree = squared < distance**2
    return Alignment(transform, float(agree.double().mean()), float(squared[agree].mean().sqrt()))
