"""What several runs predicted of the same scenes, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..errors import InputError, input_errors
from ..evaluation.compare import Reference
from ..evaluation.predictions import SCORES, PredictionFolder, SavedPrediction
from ..evaluation.results import method_of
from ..scores import HeadScores
from ..viewer.results import SceneResult

SHOWN_SCENES = 6  # unless they are named


@dataclass(frozen=True)
class Predictions:
    """Folders of `hess predict`, by method as of `method_of`; the folder's name if two are alike."""

    folders: dict[str, PredictionFolder]
    runs: dict[str, dict[str, Any]]
    scene_ids: tuple[str, ...]  # to be shown
    num_common: int  # scenes that all of them predicted

    @classmethod
    def read(cls, folders: Sequence[Path], scene_ids: Sequence[str] = ()) -> Self:
        """The runs, and which of their common scenes to show: those named, or 6 evenly spaced.

        Raises:
            InputError: a folder holds no predictions, two have one name, they have no scene in common, or one
                that was named is not among these.
        """
        found = {folder: PredictionFolder(folder).read_run() for folder in folders}
        kinds = {folder: method_of(run) for folder, run in found.items()}
        count = Counter(kinds.values())
        names = {f: kind if count[kind] == 1 else f.resolve().name for f, kind in kinds.items()}
        if len(set(names.values())) < len(folders):
            raise InputError("two folders of predictions have one method and one name; rename one.")
        order = sorted(names, key=lambda folder: kinds[folder] != "dense")  # dense first
        methods = {names[folder]: PredictionFolder(folder) for folder in order}
        common = [s for s in found[order[0]]["views"] if all(_has(folder, s) for folder in methods.values())]
        if not common:
            raise InputError(f"{', '.join(map(str, folders))} have no predicted scene in common.")
        unknown = [scene_id for scene_id in scene_ids if scene_id not in common]
        if unknown:
            known = ", ".join(common[:10]) + (", ..." if len(common) > 10 else "")
            raise InputError(f"--scenes: {unknown[0]!r} is not predicted in all folders, which have {known}.")
        runs = {names[folder]: found[folder] for folder in order}
        return cls(methods, runs, tuple(scene_ids) or _spaced(common, SHOWN_SCENES), len(common))

    def results(self) -> Iterator[SceneResult]:
        """The scenes to be shown, one at a time.

        Raises:
            InputError: the photos were not kept, the runs saw other views of a scene, or a scene has neither
                ground truth nor a dense prediction.
        """
        for scene_id in self.scene_ids:
            saved = {method: folder.read(scene_id) for method, folder in self.folders.items()}
            first = next(iter(saved.values()))
            if any(each.view_ids != first.view_ids for each in saved.values()):
                raise InputError(f"the runs saw other views of scene {scene_id!r}; predict with one --seed.")
            predictions = {method: each.prediction for method, each in saved.items()}
            with input_errors(ValueError, prefix=f"scene {scene_id!r}: "):
                yield SceneResult.of(first.scene, _reference(saved), predictions)

    @property
    def scores(self) -> HeadScores | None:
        """Those of the first run that has some."""
        kept = [folder.path / SCORES for folder in self.folders.values() if (folder.path / SCORES).is_dir()]
        return HeadScores.load(kept[0]) if kept else None

    @property
    def num_clouds(self) -> int:
        """Clouds on a page, ground truth counted."""
        return len(self.scene_ids) * (len(self.folders) + 1)


def _has(folder: PredictionFolder, scene_id: str) -> bool:
    try:
        return folder.read(scene_id, with_tensors=False).failure is None
    except InputError:
        return False


def _spaced(scene_ids: Sequence[str], count: int) -> tuple[str, ...]:
    """At most `count` of them, evenly spaced."""
    step = max(1.0, len(scene_ids) / count)
    return tuple(scene_ids[int(index * step)] for index in range(min(count, len(scene_ids))))


def _reference(saved: dict[str, SavedPrediction]) -> Reference:
    """Ground truth where it is known, else the dense prediction."""
    first = next(iter(saved.values()))
    if "truth.depth" in first.tensors:
        return first.reference
    if "dense" not in saved:
        raise InputError(
            f"scene {first.scene_id!r} has no known depth; add a folder of dense predictions to compare with."
        )
    return Reference.from_prediction(saved["dense"].prediction)
