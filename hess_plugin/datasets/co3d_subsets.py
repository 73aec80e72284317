"""Which frames of a CO3Dv2 tree belong to a subset: its table of subsets, and its set lists."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .records import read_json

SUBSETS_FILE = "category_to_subset_name_list.json"
_TOGETHER = {"manyview_dev": ("manyview_dev_0", "manyview_dev_1")}  # one sequence per category each
_SPLITS = ("train", "val", "test")

Listed = dict[str, set[int]]  # sequence -> frame numbers


class Subset:
    """Set lists of one name ("manyview_dev" means both of that kind) and one split of them.

    Args:
        text: the name, with ":train" (the default), ":val" or ":test" behind it.

    Raises:
        InputError: the text is none of these.

    Example:
        >>> str(Subset("manyview_dev"))
        'manyview_dev:train'
    """

    def __init__(self, text: str) -> None:
        self.name, colon, split = text.partition(":")
        if not self.name or (colon and split not in _SPLITS):
            raise InputError(
                f"a subset is the name of a set list, with {', '.join(f':{each}' for each in _SPLITS)} or "
                f"nothing behind it; got {text!r}."
            )
        self.split = split or _SPLITS[0]
        self.set_lists = _TOGETHER.get(self.name, (self.name,))

    def __str__(self) -> str:
        return f"{self.name}:{self.split}"

    def categories(self, root: Path, wanted: list[str] | None) -> list[str]:
        """Categories that have one of the set lists, sorted.

        Args:
            root: of the tree.
            wanted: categories that must have one; None takes all that do.

        Raises:
            InputError: the tree's table cannot be read, or no category, or not each that was named, has one.
        """
        record = read_json(root / SUBSETS_FILE)
        table = record.values
        if not isinstance(table, dict) or not all(isinstance(names, list) for names in table.values()):
            raise InputError(f"{record.where} must map each category to a list of its subsets.")
        for category in wanted or ():
            if category not in table:
                raise InputError(f"{record.where} has no category {category!r}; it has {', '.join(table)}.")
        chosen = sorted(set(table if wanted is None else wanted))
        having = [category for category in chosen if set(self.set_lists) & set(table[category])]
        if not having or (wanted is not None and having != chosen):
            lacking = [category for category in chosen if category not in having]
            there = sorted({name for category in lacking for name in table[category]})
            raise InputError(
                f"{record.where} names no {' or '.join(self.set_lists)} for {', '.join(lacking) or 'any'}; "
                f"it names {', '.join(there) or 'nothing'}."
            )
        return having

    def frames(self, root: Path, category: str) -> Listed:
        """Listed frames of a category, from all of the subset's set lists that it has.

        Raises:
            InputError: a set list cannot be read, or the split in it is missing, empty or malformed.
        """
        return {sequence: set(numbers) for sequence, numbers in self.entries(root, category).items()}

    def entries(self, root: Path, category: str) -> dict[str, list[int]]:
        """The same in file order, which protocols draw from; a frame that is listed twice is there twice."""
        names = set(read_json(root / SUBSETS_FILE).field(category))
        listed: dict[str, list[int]] = {}
        for name in self.set_lists:
            if name in names:
                path = root / category / "set_lists" / f"set_lists_{name}.json"
                for sequence, number in _read_set_list(path, self.split):
                    listed.setdefault(sequence, []).append(number)
        return listed


def _read_set_list(path: Path, split: str) -> list[tuple[str, int]]:
    """Sequence and frame number of each entry of a split, in order."""
    record = read_json(path)
    entries = record.field(split)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{record.where}: {split!r} must be a list of at least one frame.")
    listed = []
    for index, entry in enumerate(entries):
        match entry:
            case [str(sequence), int(number), *_]:
                listed.append((sequence, number))
            case _:
                raise InputError(
                    f"{record.where}: '{split}[{index}]' must be sequence_name, frame_number and path."
                )
    return listed


def check_tree(root: Path) -> None:
    """Raise InputError, naming what it is instead, for a folder that is no root of CO3Dv2."""
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; give the root of CO3Dv2.")
    if (root / SUBSETS_FILE).exists():
        return
    for pattern, what in (
        ("*/set_lists.json", "CO3D version 1"),
        ("*_train.jgz", "VGGT's own annotations of CO3D"),
        ("*_test.jgz", "VGGT's own annotations of CO3D"),
        ("*/*/images/*.npz", "CO3D as preprocessed by DUSt3R"),
    ):
        if next(root.glob(pattern), None):
            raise InputError(f"{str(root)!r} holds {what}; give the root of the official CO3Dv2 download.")
    raise InputError(f"{str(root)!r} has no {SUBSETS_FILE}; give the root of the official CO3Dv2 download.")
