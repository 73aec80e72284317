"""The main job: reconstruct scenes with dense, uniform and HeSS attention at one density and compare them."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .config import HeSSConfig
from .datasets import Scene, load_scene, synthetic_scene
from .datasets.folder import find_photos
from .demo_results import PAGE_FILE, demo_page, summarise, write_sheet, write_summary
from .errors import InputError, input_errors
from .evaluation.compare import Reference
from .evaluation.predict import Prediction, predict
from .files import staged_folder
from .loading import ASSETS, EMBEDDED_MODEL, check_folder, memory_errors
from .loading import load_model as load_checkpoint
from .models import VggtConfig, VggtImageProcessor, VggtModel
from .patch import apply_hess
from .scores import HeadScores
from .viewer.clouds import write_scene
from .viewer.page import pack_scenes, write_page
from .viewer.results import SceneResult

EMBEDDED_PHOTOS = ASSETS / "hololens_office"
# Training draws its scenes from seeds of 2^32 and above, calibration and examination from small ones.
TEST_SEEDS = (1_000_003, 1_000_000, 1_000_001)
PHOTOS_NOTE = (
    "The embedded model has seen procedural scenes only: on photos its reconstructions show that everything "
    "runs, not what VGGT can do."
)
METHODS = ("dense", "uniform", "hess")
MIN_VIEWS = 3  # a similarity of camera centres needs three
CAMERAS_FILE = "cameras.json"  # in a scene folder with known cameras and depth


@dataclass(frozen=True)
class DemoSettings:
    """What to reconstruct, with what, and where to."""

    out: Path = Path("hess-demo")
    images: Path | None = None  # folder of photos; None takes synthetic scenes and the embedded photos
    model: str = str(EMBEDDED_MODEL)  # folder or repository of a VGGT checkpoint
    hess: Any = None  # every form of `hess=`; None takes the scores beside the weights
    density: float = 0.5  # share of attended blocks
    views: int = 24  # at most this many photos a scene, evenly spaced
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputError(f"density must be above 0 and at most 1, got {self.density}.")
        if self.views < MIN_VIEWS:
            raise InputError(
                f"views must be at least {MIN_VIEWS} to compare camera positions, got {self.views}."
            )


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run everything and write the result folder; returns the content of its results.json.

    Raises:
        InputError: something given cannot be used, or memory runs out. Earlier results are left as they were.
    """
    for module in ("matplotlib", "scipy", "trimesh"):
        if find_spec(module) is None:  # said now, not when the results are to be drawn
            raise InputError(f'the demo needs {module}; pip install "hess-plugin[demo]".')
    with (
        staged_folder(settings.out) as folder,
        memory_errors(settings.device, f"{settings.views} views (--views) a scene"),
    ):
        # Photos come first: a bad one should not be found after a long download of weights.
        photos = pick_photos(settings)
        scenes = load_scenes(settings, photos, load_processor(settings.model))
        model, scores = load_model(settings)
        results = reconstruct(model, scores, scenes, settings.density)
        summary = summarise(results)
        if settings.model == str(EMBEDDED_MODEL) and any(result.kind != "synthetic" for result in results):
            summary["notes"].append(PHOTOS_NOTE)
        summary |= {
            "photos": [photo.name for photo in photos],  # in the order of the views
            "settings": _describe(settings),
            "versions": _versions(),
        }
        with input_errors(OSError, prefix=f"cannot write results for {settings.out}: "):
            for result in tqdm(results, desc="Writing", unit="scene", disable=None, leave=False):
                write_scene(folder / result.scene.name, result)
            write_sheet(folder / "contact_sheet.png", results, scores, settings.density, summary["notes"])
            packed = list(pack_scenes(results, sum(len(result.shown) for result in results)))
            write_page(folder / PAGE_FILE, demo_page(scores, settings.density, summary), packed)
            write_summary(folder, summary)
    return summary


def load_model(settings: DemoSettings) -> tuple[VggtModel, HeadScores]:
    """The dense model in float32 on the device of the settings, and its scores."""
    embedded = settings.model == str(EMBEDDED_MODEL)
    beside: Any = "synthetic" if embedded else True
    hess = beside if settings.hess is None else settings.hess
    model = load_checkpoint(settings.model, settings.device, hess, VggtModel)
    handle: Any = model.hess
    handle.remove()
    return model, handle.scores


def load_processor(model: str) -> VggtImageProcessor:
    """The image processor saved beside the weights, or one that fits their config where there is none."""
    check_folder(model)
    with input_errors(OSError, ValueError):
        try:
            return VggtImageProcessor.from_pretrained(model)
        except OSError:
            config = VggtConfig.from_pretrained(model)
            return VggtImageProcessor(size=config.img_size, patch_size=config.patch_size)


def pick_photos(settings: DemoSettings) -> list[Path]:
    """The user's photos, at most `views`, evenly spaced in order of their names.

    None without `images`, or where a `cameras.json` lists the photos.
    """
    if settings.images is None or (settings.images / CAMERAS_FILE).exists():
        return []
    photos = find_photos(settings.images, settings.views)
    if len(photos) < MIN_VIEWS:
        raise InputError(f"{settings.images} holds {len(photos)} photos; at least {MIN_VIEWS} are needed.")
    return photos


def load_scenes(settings: DemoSettings, photos: list[Path], processor: VggtImageProcessor) -> list[Scene]:
    """The user's scene; without one, held-out synthetic scenes and the embedded photo set."""
    if settings.images is not None and photos:
        with input_errors(ValueError):
            return [Scene(settings.images.resolve().name or "photos", processor(photos)["images"])]
    known = load_scene(
        settings.images or EMBEDDED_PHOTOS, processor.size, processor.patch_size, max_views=settings.views
    )
    if settings.images is not None:
        return [known]
    return [*(synthetic_scene(seed, settings.views, image_size=processor.size) for seed in TEST_SEEDS), known]


def reconstruct(
    model: nn.Module, scores: HeadScores, scenes: list[Scene], density: float
) -> list[SceneResult]:
    """All methods on all scenes, measured against ground truth where there is any, else against dense."""
    results = []
    with tqdm(total=len(scenes) * len(METHODS), desc="Reconstructing", disable=None, leave=False) as bar:
        predict(model, scenes[0].select([0, 1, 2]))  # so that no method pays for the first call
        for scene in scenes:
            predictions = {}
            for method in METHODS:
                bar.set_postfix_str(f"{scene.name}, {method}")
                predictions[method] = predict_at_density(model, scores, scene, method, density)
                bar.update()
            if scene.has_ground_truth:
                reference = Reference.from_scene(scene)
            else:
                reference = Reference.from_prediction(predictions["dense"])
            results.append(SceneResult.of(scene, reference, predictions))
    return results


def predict_at_density(
    model: nn.Module, scores: HeadScores, scene: Scene, method: str, density: float
) -> Prediction:
    """One forward pass, dense or with an allocation; all allocations attend to the same number of blocks."""
    if method == "dense":
        return predict(model, scene)
    config = HeSSConfig(sparse_ratio=1 - density, cdf_threshold=0.0, allocation=method)  # type: ignore[arg-type]
    with apply_hess(model, scores, config) as handle:
        return predict(model, scene, handle)


def _describe(settings: DemoSettings) -> dict[str, Any]:
    """The settings as JSON values."""
    plain = (int, float, str, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in vars(settings).items()}


def _versions() -> dict[str, str]:
    """What a number in the results depends on."""
    found = {"python": platform.python_version()}
    for package in ("hess-plugin", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that was not installed
            found[package] = "unknown"
    return found
