"""DTU's scans of objects on a table, from the point-map protocol's tree or MVSNet's training tree.

World unit is the millimetre. Scenes are named "scan1", views "00000000" (from 0). Which tree lies below the
root is found out (see `dtu_layouts`). For `with_cloud`, the official evaluation set's `Points/stl` must lie
below the same root (see `dtu_truth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .base import PhotoDataset, View
from .dtu_layouts import DtuLayout, PointmapLayout, TrainingLayout
from .dtu_truth import cloud_path
from .ply import read_ply_points

# MVSNet's splits; "training" are all other scans. The test scans are those of all published tables.
TEST_SCANS = (1, 4, 9, 10, 11, 12, 13, 15, 23, 24, 29, 32, 33, 34, 48, 49, 62, 75, 77, 110, 114, 118)
VALIDATION_SCANS = (3, 5, 17, 21, 28, 35, 37, 38, 40, 43, 56, 59, 66, 67, 82, 86, 106, 117)
_SPLITS = ("training", "validation", "test")
_LIGHT = 3


class DtuDataset(PhotoDataset):
    """Scans of a tree.

    Args:
        root: of the tree.
        image_width: see `Dataset`.
        patch_size: see `Dataset`.
        min_views: see `Dataset`.
        scans: numbers ("1,4,9" or a list), or one of "training", "validation" and "test"; None takes all.
        light: of the training tree, 0 to 6 (default 3); the other tree has one light, and it must be None.
        with_cloud: give each scene the scan's reference cloud; scans without one are skipped.

    Raises:
        InputError: the root holds neither tree or both, a scan that was named is not there, or another
            argument does not fit.
    """

    name = "dtu"
    root: Path

    def __init__(
        self,
        root: str | Path,
        *,
        image_width: int,
        patch_size: int,
        min_views: int = 1,
        scans: str | Sequence[int] | None = None,
        light: int | None = None,
        with_cloud: bool = False,
    ) -> None:
        super().__init__(image_width=image_width, patch_size=patch_size, min_views=min_views)
        self.root = Path(root)
        self.with_cloud = with_cloud
        self._layout = _find_layout(self.root, light)
        asked, wanted = _parse_scans(scans, self._layout)
        self.settings |= {**self._layout.settings, "scans": asked, "with_cloud": with_cloud}
        reasons = {scan: self._why_unusable(scan) for scan in wanted}
        self.skipped = {f"scan{scan}": reason for scan, reason in reasons.items() if reason}
        self._scans = {f"scan{scan}": scan for scan, reason in reasons.items() if not reason}

    def scene_ids(self) -> list[str]:
        """See `Dataset`."""
        return sorted(self._scans)

    def view_ids(self, scene_id: str) -> list[str]:
        """See `PhotoDataset`."""
        return self._layout.view_ids(self._scans[scene_id])

    def read_view(self, scene_id: str, view_id: str) -> View:
        """See `PhotoDataset`."""
        return self._layout.read_view(self._scans[scene_id], view_id)

    def read_cloud(self, scene_id: str) -> np.ndarray | None:
        """See `PhotoDataset`: the scan's reference cloud in mm."""
        return read_ply_points(cloud_path(self.root, self._scans[scene_id])) if self.with_cloud else None

    def _why_unusable(self, scan: int) -> str | None:
        if scan not in self._layout.scans():
            return "the scan is not there"
        if reason := self._layout.why_unusable(scan):
            return reason
        if self.with_cloud and not (path := cloud_path(self.root, scan)).is_file():
            return f"there is no file {path.relative_to(self.root).as_posix()!r}"
        count = len(self._layout.view_ids(scan))
        return f"has {count} views of at least {self.min_views}" if count < self.min_views else None


def _find_layout(root: Path, light: int | None) -> DtuLayout:
    pointmap = any(root.glob("scan*/depths"))
    training = (root / "Rectified").is_dir() and (root / "Cameras" / "train").is_dir()
    if pointmap == training:
        found = "both" if pointmap else "neither"
        raise InputError(
            f"{str(root)!r} must hold scanN/depths (the point-map tree) or Rectified and Cameras/train "
            f"(MVSNet's training tree), and holds {found}; other trees of DTU have no depth maps."
        )
    if training:
        return TrainingLayout(root, _LIGHT if light is None else light)
    if light is not None:
        raise InputError(f"light is {light}, but {str(root)!r} is the point-map tree, which has one light.")
    return PointmapLayout(root)


def _parse_scans(
    scans: str | Sequence[int] | None, layout: DtuLayout
) -> tuple[str | list[int] | None, list[int]]:
    """What was asked for, in one form, and the scans meant; of a split also those that are not there."""
    there = layout.scans()
    if scans is None:
        return None, there
    if isinstance(scans, str) and scans in _SPLITS:
        known = {"validation": VALIDATION_SCANS, "test": TEST_SCANS}
        others = [scan for scan in there if scan not in TEST_SCANS + VALIDATION_SCANS]
        return scans, list(known.get(scans, others))
    words = scans.split(",") if isinstance(scans, str) else [str(scan) for scan in scans]
    if not words or not all(word.strip().isdecimal() for word in words):
        raise InputError(f"scans must be numbers like '1,4,9' or one of {', '.join(_SPLITS)}, got {scans!r}.")
    numbers = sorted({int(word) for word in words})
    missing = [scan for scan in numbers if scan not in there]
    if missing:
        listed = ", ".join(map(str, there)) or "none"
        raise InputError(f"{str(layout.root)!r} has no scan {missing[0]}; there are {listed}.")
    return numbers, numbers
