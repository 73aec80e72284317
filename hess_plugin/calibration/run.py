"""The calibration command: a model and a dataset in, a sidecar out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import torch

from ..config import CalibrationConfig
from ..datasets import Scene, load_scene, synthetic_scene
from ..errors import InputError, input_errors
from ..loading import load_vggt, memory_errors
from ..models import VggtModel
from ..scores import CONFIG_FILE, HeadScores
from .fisher import calibrate

DATASETS = ("synthetic", "folder")
# Of synthetic scenes; training draws from seeds of 2^32 and above, examination and demo use others.
FIRST_SEED = 10_000


@dataclass(frozen=True)
class CalibrationRun:
    """What to calibrate on what, and where the scores go."""

    model: str  # folder or repository of a VggtModel
    dataset: str  # one of DATASETS
    out: Path  # folder for the sidecar
    root: Path | None = None  # of the dataset "folder": one folder per scene, each with a cameras.json
    config: CalibrationConfig = field(default_factory=CalibrationConfig)
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def __post_init__(self) -> None:
        if self.dataset not in DATASETS:
            raise InputError(f"unknown dataset {self.dataset!r}; known: {', '.join(DATASETS)}.")
        if (self.root is None) != (self.dataset == "synthetic"):
            raise InputError(
                "--root is the folder of scenes of --dataset folder: give it there, and only there."
            )


def run_calibration(run: CalibrationRun) -> HeadScores:
    """Calibrate the dense model in float32 and save the sidecar; the file appears whole or not at all.

    Raises:
        InputError: the model, the dataset or the settings cannot be used.
    """
    _check_out(run.out)
    model = load_vggt(run.model, run.device)
    with (
        input_errors(ValueError),
        memory_errors(run.device, f"{run.config.num_views} views (--num-views) a scene"),
    ):
        scores = calibrate(
            model,
            _scenes(run, model),
            run.config,
            dataset=run.dataset,
            base_model=run.model,
            base_revision=getattr(model.config, "_commit_hash", None),
        )
    scores.save(run.out)
    return scores


def _check_out(out: Path) -> None:
    """Find out before the work that its result can be written, and would replace nothing."""
    if (out / CONFIG_FILE).exists():
        raise InputError(f"{out} holds scores already; remove them or choose another --out.")
    with input_errors(OSError, prefix=f"cannot write to {out}: "):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


def _scenes(run: CalibrationRun, model: VggtModel) -> Iterator[Scene]:
    size, patch_size, config = model.config.img_size, model.config.patch_size, run.config
    if run.root is None:
        for seed in range(FIRST_SEED, FIRST_SEED + config.num_scenes):
            yield synthetic_scene(seed, config.num_views, image_size=size, device=run.device)
        return
    folders = sorted(path.parent for path in run.root.glob("*/cameras.json"))
    if not folders:
        raise InputError(
            f"{run.root} holds no scene: none of its folders has a cameras.json; choose another --root."
        )
    for folder in folders:
        yield load_scene(folder, size, patch_size)
