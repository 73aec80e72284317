"""Evaluation protocols by name: which views are predicted, and how predictions become numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..datasets import Dataset, PhotoDataset
from ..datasets.choice import choose_others
from ..datasets.co3d_protocols import SUBSET, Views, listed_views, vggt_views
from ..errors import InputError
from .measuring import Evaluation, measure_dtu_official, measure_dtu_pi3, measure_poses, measure_scenes
from .predictions import SavedPrediction

POINTMAP_STEP = 5  # of DTU's views, of which π³ takes every fifth


@dataclass(frozen=True)
class Selection:
    """Which scenes and views; what a protocol fixes itself is not read."""

    num_scenes: int | None = None  # None: the protocol's number, else 24
    num_views: int | None = None  # None: the protocol's number
    seed: int = 0
    min_frames: int = 50  # of a sequence, by the VGGT protocol
    fast: bool = False  # 10 sequences per category, by the VGGT protocol
    frames: Path | None = None  # file of positions, by the π³ protocol
    categories: list[str] | None = None  # of CO3D
    excluded: tuple[str, ...] = ()  # scenes that a calibration drew

    def __post_init__(self) -> None:
        for name in ("num_scenes", "num_views", "min_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate that numbers can be compared in."""

    name: str
    about: str
    datasets: tuple[str, ...]  # that it is defined for
    choose: Callable[[Dataset, Selection], Views | dict[str, None]]  # None: views are drawn by seed
    measure: Callable[..., Evaluation]
    num_views: int | None  # per scene; None: all
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset, where none are given
    only_cameras: bool = False  # whether cameras are all it reads
    needs_root: bool = False  # whether `measure` reads the official ground truth


def _draw(dataset: Dataset, selection: Selection) -> dict[str, None]:
    number = selection.num_scenes or 24
    chosen = choose_others(dataset, number, selection.seed, selection.excluded)
    if not chosen:
        raise InputError(f"{dataset.name} has no scene but those that the calibration of the scores drew.")
    return dict.fromkeys(chosen)


def _vggt(dataset: Dataset, selection: Selection) -> Views:
    return _first(
        vggt_views(
            dataset.root,  # type: ignore[arg-type]
            selection.categories,
            selection.num_views or 10,
            selection.min_frames,
            selection.fast,
        ),
        selection,
    )


def _pi3(dataset: Dataset, selection: Selection) -> Views:
    if selection.frames is None:
        raise InputError(
            "--protocol co3d-pi3 needs --frames, π³'s CO3Dv2_relpose_seq-id-map_seed42.json or another file "
            "{sequence: [positions]}."
        )
    return _first(listed_views(dataset.root, selection.frames, selection.categories), selection)  # type: ignore[arg-type]


def _every(step: int) -> Callable[[Dataset, Selection], Views]:
    def choose(dataset: Dataset, selection: Selection) -> Views:
        assert isinstance(dataset, PhotoDataset)
        scans = sorted(dataset.scene_ids(), key=lambda scan: int(scan.removeprefix("scan")))
        limit = selection.num_views or (10 if step > 1 else None)
        return _first({scan: dataset.view_ids(scan)[::step][:limit] for scan in scans}, selection)

    return choose


def _first(views: Views, selection: Selection) -> Views:
    return dict(list(views.items())[: selection.num_scenes])


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "scene",
            "each scene against its own cameras and depth, in its own unit; mean over scenes",
            ("co3d", "dtu", "folder", "synthetic"),
            _draw,
            measure_scenes,
            num_views=16,
        ),
        Protocol(
            "co3d-vggt",
            "CO3Dv2 poses as VGGT's script: 10 drawn frames, AUC per category, mean over categories",
            ("co3d",),
            _vggt,
            lambda saved: measure_poses(saved, frame="first", by_category=True),
            num_views=10,
            options={"subset": SUBSET},
            only_cameras=True,
        ),
        Protocol(
            "co3d-pi3",
            "CO3Dv2 poses as π³'s script: frames from a file, pairs of all scenes pooled",
            ("co3d",),
            _pi3,
            lambda saved: measure_poses(saved, frame="second", by_category=False),
            num_views=10,
            options={"subset": SUBSET},
            only_cameras=True,
        ),
        Protocol(
            "dtu-pi3",
            "DTU point maps as π³: 10 views, Umeyama on pixels, ICP, known pixels, no cut-off; mm",
            ("dtu",),
            _every(POINTMAP_STEP),
            measure_dtu_pi3,
            num_views=10,
            options={"scans": "test"},
        ),
        Protocol(
            "dtu-official",
            "DTU's evaluation of 2014: all views, aligned by cameras, ObsMask and Plane, 20 mm cut-off; mm",
            ("dtu",),
            _every(1),
            measure_dtu_official,
            num_views=None,
            options={"scans": "test"},
            needs_root=True,
        ),
    )
}


def protocol_for(name: str | None, dataset: str) -> Protocol:
    """The protocol of a name, or that of the dataset; InputError if the two do not fit."""
    standard = {"co3d": "co3d-vggt", "dtu": "dtu-pi3"}
    name = name or standard.get(dataset, "scene")
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}.")
    protocol = PROTOCOLS[name]
    if dataset not in protocol.datasets:
        raise InputError(
            f"--protocol {name} is for {', '.join(protocol.datasets)}, not for {dataset}; "
            f"leave it out to take {standard.get(dataset, 'scene')}."
        )
    return protocol


def measure(
    protocol: Protocol, saved: Iterable[SavedPrediction], root: Path | None, alignment: str
) -> Evaluation:
    """The numbers of a protocol; `root` and `alignment` are read where it needs the official ground truth."""
    if not protocol.needs_root:
        return protocol.measure(saved)
    if root is None:
        raise InputError(
            f"--protocol {protocol.name} needs --truth, the folder with DTU's Points/stl and ObsMask."
        )
    return protocol.measure(saved, root, alignment)
