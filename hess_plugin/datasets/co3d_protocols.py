"""Which sequences and frames of CO3Dv2 the pose protocols of VGGT and π³ evaluate on.

Both take the sequences of `fewview_dev:test` with a viewpoint quality above 0.5. VGGT draws 10 frames of each
while it runs; π³ has a fixed file. Positions are places in the set list of the sequence, in file order.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from ..errors import InputError
from .co3d_annotations import MAX_TRANSLATION, read_frames, read_sequences
from .co3d_subsets import Subset
from .records import read_json

SUBSET = "fewview_dev:test"
_SEEN = """
apple backpack banana baseballbat baseballglove bench bicycle bottle bowl broccoli cake car carrot cellphone
chair cup donut hairdryer handbag hydrant keyboard laptop microwave motorcycle mouse orange parkingmeter pizza
plant stopsign teddybear toaster toilet toybus toyplane toytrain toytruck tv umbrella vase wineglass
"""
SEEN = tuple(_SEEN.split())  # VGGT's 41 categories, in the order in which it draws
MIN_QUALITY = 0.5
FAST_SEQUENCES = 10  # per category, of VGGT's --fast_eval

Views = dict[str, list[str]]  # "category/sequence" -> view ids, the first is the reference


def vggt_views(
    root: Path, categories: list[str] | None, num_views: int = 10, min_frames: int = 50, fast: bool = False
) -> Views:
    """What VGGT's script evaluates on, drawn as it draws.

    Both generators are seeded with 0 once, before the first category, so each draw depends on all before it:
    the numbers of a run on some categories are not those of these categories in a full run. Frames come in
    the order of the draw.

    Args:
        root: of the official tree.
        categories: to take, in their order here; None takes those of VGGT's 41 that the tree has.
        num_views: frames drawn from each sequence.
        min_frames: shorter sequences are left out before frames are drawn.
        fast: take 10 sequences of each category that has as many.

    Raises:
        InputError: the tree cannot be read, lacks a category's subset, or no sequence is left.
    """
    subset, there = Subset(SUBSET), read_json(root / "category_to_subset_name_list.json").values
    chosen = [category for category in SEEN if category in there] if categories is None else categories
    draw_names = random.Random(0)
    draw_frames = np.random.RandomState(0)  # the generator that the script uses
    views: Views = {}
    for category in chosen:
        subset.categories(root, [category])
        entries, listed = subset.entries(root, category), subset.frames(root, category)
        quality = {
            name: sequence.quality
            for name, sequence in read_sequences(root / category / "sequence_annotations.jgz", listed).items()
        }
        names = sorted(name for name in entries if (quality.get(name) or 0) > MIN_QUALITY)
        if fast and len(names) >= FAST_SEQUENCES:
            names = sorted(draw_names.sample(names, FAST_SEQUENCES))
        records = read_frames(
            root / category / "frame_annotations.jgz", {name: listed[name] for name in names}
        )
        for name in names:
            sums = [
                records[name][number].numbers("viewpoint.T", (3,)).sum()
                for number in entries[name]
                if number in records.get(name, {})
            ]
            if len(sums) < min_frames or max(sums) > MAX_TRANSLATION:
                continue
            drawn = draw_frames.choice(len(sums), num_views, replace=False)
            views[f"{category}/{name}"] = [f"{entries[name][position]:06d}" for position in drawn]
    return _not_empty(views, root)


def listed_views(root: Path, file: Path, categories: list[str] | None) -> Views:
    """What π³ evaluates on: the positions that a file gives for each sequence name.

    Args:
        root: of the official tree.
        file: JSON, {sequence: [positions]}, such as π³'s `CO3Dv2_relpose_seq-id-map_seed42.json`.
        categories: to look for the sequences in; None takes all that the tree has.

    Raises:
        InputError: a file cannot be read, a sequence is in no category, or a position is beyond its set list.
    """
    record = read_json(file)
    if not isinstance(record.values, dict):
        raise InputError(f"{record.where} must map each sequence to positions in its set list.")
    subset, views, missing = Subset(SUBSET), {}, set(record.values)
    for category in subset.categories(root, categories):
        for name, numbers in subset.entries(root, category).items():
            if name not in missing:
                continue
            missing.remove(name)
            positions = record.values[name]
            fits = isinstance(positions, list) and all(
                isinstance(p, int) and 0 <= p < len(numbers) for p in positions
            )
            if not fits or not positions:
                raise InputError(
                    f"{record.where}: {name!r} must have positions from 0 to {len(numbers) - 1} in its set "
                    f"list, got {positions!r}."
                )
            views[f"{category}/{name}"] = [f"{numbers[p]:06d}" for p in positions]
    if missing and categories is None:
        raise InputError(f"{record.where} names {min(missing)!r}, which no {SUBSET} list below {root} has.")
    return _not_empty(views, root)


def _not_empty(views: Views, root: Path) -> Views:
    if not views:
        raise InputError(f"no sequence of {SUBSET} below {root} fits the protocol.")
    return views
