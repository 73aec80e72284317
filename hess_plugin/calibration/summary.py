"""What calibration scenes say about the heads beyond the mean: intervals, and how many scenes are enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..scores import CONFIG_FILE, ERRORS, HeadScores, head_weights
from ..tables import format_calibrated_on, format_table

NUM_RESAMPLES = 1000
NUM_SPLITS = 100
ENOUGH = 0.9  # rank correlation; a convention for "the same order but for neighbours", no theorem
SHOWN_SIZES = (1, 2, 5, 10, 20, 50, 100)  # numbers of scenes whose stability is printed
MAX_REASONS = 10


def bootstrap_interval(scores: HeadScores, level: float = 0.95, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap interval over scenes of every head's HeSS at the recommended λ.

    N of the N scenes are drawn with replacement, 1000 times, and the weights are those of the drawn scenes'
    mean traces. The interval speaks about other scenes of the same data set.

    Args:
        scores: of at least two scenes.
        level: share of the resamples inside, in (0, 1).
        seed: of the draws.

    Returns:
        Low and high ends, each [L, H] float64.

    Raises:
        ValueError: for a single scene or an impossible level.
    """
    num_scenes = len(scores.info.scene_ids)
    if num_scenes < 2:
        raise ValueError("an interval over scenes needs at least two of them, these scores are of one.")
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level!r}.")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_scenes, (NUM_RESAMPLES, num_scenes), generator=generator)
    shares = torch.nn.functional.one_hot(drawn, num_scenes).double().mean(1)  # [resamples, N]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    # A resample in which all scenes lack sensitivity in a layer has no weights there: NaN, left out.
    low, high = _weights_of(scores, shares).nanquantile(ends, dim=0)
    return low, high


def rank_stability(scores: HeadScores, sizes: Sequence[int], seed: int = 0) -> dict[int, float]:
    """How alike n scenes and n other scenes rank the heads of a layer.

    For each n two disjoint sets of n scenes are drawn 100 times. The figure is Spearman's rank correlation of
    the two sets' weights (recommended λ) within a layer, averaged over layers and draws: 1 means the same
    order. Disjoint sets, because a set that shares scenes with the other agrees with it by construction; the
    figure for n says what a calibration on n scenes is worth, the scores of all N scenes are better.

    Args:
        scores: of N scenes.
        sizes: numbers of scenes n, each in [1, N / 2].
        seed: of the draws; the figure for n does not depend on the other sizes.

    Raises:
        ValueError: for an n out of range.
    """
    num_scenes = len(scores.info.scene_ids)
    stability = {}
    for n in sizes:
        if not 1 <= n <= num_scenes // 2:
            raise ValueError(
                f"sizes must be from 1 to {num_scenes // 2}, half of {num_scenes} scenes, got {n!r}."
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(NUM_SPLITS, num_scenes, generator=generator).argsort(1)
        first, second = (_members(part, num_scenes) / n for part in (order[:, :n], order[:, n : 2 * n]))
        pairs = _rank_correlation(_weights_of(scores, first), _weights_of(scores, second))
        stability[n] = float(pairs.mean())
    return stability


def format_summary(scores: HeadScores) -> str:
    """Text for people: skipped scenes, heads that stand out in each layer, how many scenes are enough.

    Raises:
        ValueError: as `HeadScores.weights` does.
    """
    info = scores.info
    skipped = format_reasons(info.skipped, CONFIG_FILE) if info.skipped else "none skipped"
    counts = f"{format_calibrated_on(info)}, {skipped}"
    if len(info.scene_ids) < 2:
        return counts + "\nOne scene says nothing about other scenes: no intervals, no rank stability."
    heading = (
        f"Shares of each layer's sensitivity (λ = {info.camera_weight:g}) with 95 % bootstrap intervals over "
        f"scenes; above and below: the interval excludes the even share {1 / info.num_heads:.3f}"
    )
    return "\n".join(
        [counts, "", heading, _head_table(scores), "", _scene_line(scores), _stability_lines(scores)]
    )


def format_reasons(reasons: dict[str, str], file: str) -> str:
    """How many scenes were skipped, and one line for each reason with an example; `file` holds them all."""
    counts = Counter(reasons.values()).most_common()
    example = {reason: scene for scene, reason in reversed(reasons.items())}
    lines = [f"  {count} x {reason} ({example[reason]})" for reason, count in counts[:MAX_REASONS]]
    if len(counts) > MAX_REASONS:
        lines.append(f"  and {len(counts) - MAX_REASONS} more reasons, all in {file}")
    return "\n".join([f"{len(reasons)} skipped:", *lines])


def _head_table(scores: HeadScores) -> str:
    """One row per layer; heads and layers are counted from 1."""
    weights, (low, high) = scores.weights(), bootstrap_interval(scores)
    even = 1 / scores.info.num_heads
    rows = []
    for layer, shares in enumerate(weights):
        top = int(shares.argmax())
        above = [head for head in shares.argsort(descending=True).tolist() if low[layer, head] > even]
        below = int((high[layer] < even).sum())
        rows.append(
            [
                str(layer + 1),
                f"{top + 1}: {shares[top]:.2f} ({low[layer, top]:.2f} to {high[layer, top]:.2f})",
                ", ".join(str(head + 1) for head in above) or "none",
                str(below),
                str(len(shares) - len(above) - below),
            ]
        )
    return format_table(["layer", "strongest head", "heads above", "below", "unclear"], rows)


def _scene_line(scores: HeadScores) -> str:
    """The scene that weighs most: gradients are squared, so one bad scene can drown the rest."""
    parts = []
    for error in ERRORS:
        scenes = scores.scene_traces[error].sum((1, 2))
        top = int(scenes.argmax())
        parts.append(f"{error} {scenes[top] / scenes.sum():.0%} ({scores.info.scene_ids[top]})")
    return f"Largest part of all traces that comes from one scene: {', '.join(parts)}"


def _stability_lines(scores: HeadScores) -> str:
    """The rank stability, and the least number of scenes that reaches `ENOUGH`."""
    half = len(scores.info.scene_ids) // 2
    stability = rank_stability(scores, range(1, half + 1))
    shown = ", ".join(f"{n}: {stability[n]:.2f}" for n in sorted({*SHOWN_SIZES, half} & {*stability}))
    enough = next((n for n, figure in stability.items() if figure >= ENOUGH), None)
    verdict = (
        f"{enough} scene{'s' * (enough > 1)} would have been enough (at least {ENOUGH})."
        if enough
        else f"{half} are not enough to reach {ENOUGH}: another draw of scenes would reorder some heads."
    )
    return f"Rank correlation of n scenes with n others, mean over layers: {shown}\n{verdict}"


def _members(chosen: Tensor, num_scenes: int) -> Tensor:
    """1 where a scene is among those chosen [R, n], else 0: [R, N] float64."""
    return torch.zeros(len(chosen), num_scenes, dtype=torch.float64).scatter_(1, chosen, 1)


def _weights_of(scores: HeadScores, shares: Tensor) -> Tensor:
    """HeSS [R, L, H] of weighted means of scenes; `shares` [R, N], each row sums to 1."""
    camera, points = (torch.einsum("rn,nlh->rlh", shares, scores.scene_traces[error]) for error in ERRORS)
    return head_weights(camera, points, scores.info.camera_weight)


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation along the last axis, equal values sharing their mean rank.

    Without any order (all equal, or NaN where a layer has no sensitivity) it is 0.
    """
    ranks_a, ranks_b = _centred_ranks(a), _centred_ranks(b)
    norms = ranks_a.square().sum(-1) * ranks_b.square().sum(-1)
    return ((ranks_a * ranks_b).sum(-1) / norms.sqrt()).nan_to_num(0)


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis minus their mean: half of (how many are lower - how many are higher)."""
    return (values[..., :, None] - values[..., None, :]).sign().sum(-1) / 2
