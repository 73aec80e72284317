"""Command-line options of `hess calibrate`; nothing heavy is imported until they are used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import input_errors

if TYPE_CHECKING:
    from .command import CalibrationRun

EPILOG = """\
On several GPUs: accelerate launch -m hess_plugin.calibrate OPTIONS.
On a CPU each process uses one core, so that sums are rounded alike for any number of processes; on two cores:
accelerate launch --multi_gpu --num_processes 2 -m hess_plugin.calibrate OPTIONS (--cpu starts one process).
The scores are the same bytes each time."""

_PLACES = ("model", "model_class", "dataset", "root", "image_width", "out", "device", "resume", "skip_failed")
_DATASET = ("subset", "exclude", "categories", "min_quality", "with_background", "scans", "light")
_CONFIG = (
    *("num_scenes", "num_views", "seed", "point_source", "truth", "icp", "neighbors", "max_points"),
    *("min_fitness", "precision", "projections", "camera_weight"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options of the command, in groups; the defaults live where they are used."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, help="folder or repository of a checkpoint")
    add("--model-class", metavar="MODULE:CLASS", help="its class (default: the native VGGT or π³)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="for the sidecar, and until then the records",
    )
    add("--device", help="cpu, cuda, cuda:1, ... (default: each process's GPU, else cpu)")
    add("--resume", action="store_true", default=None, help="go on where a stopped run in --out ended")
    add("--skip-failed", action="store_true", default=None, help="leave out scenes that cannot be used")
    _add_scene_options(parser)
    _add_error_options(parser)
    _add_score_options(parser)


def _add_scene_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("scenes").add_argument
    add("--dataset", required=True, help="co3d, dtu, folder or synthetic")
    add("--root", type=Path, metavar="FOLDER", help="of the dataset (synthetic has none)")
    add("--subset", help="co3d: set list, with :val or :test for that split (default: manyview_dev)")
    add("--exclude", metavar="SUBSET", help="co3d: without the sequences of this one")
    add("--categories", metavar="NAMES", help="co3d: such as apple,bench (default: all)")
    add("--min-quality", type=float, help="co3d: sequences must score above (default: 0.5)")
    keep = "co3d: also depth outside the object"
    add("--with-background", action="store_true", default=None, help=keep)
    add("--scans", help="dtu: such as 1,4,9, or training, validation, test (default: all)")
    add("--light", type=int, metavar="N", help="dtu, training tree: 0 to 6 (default: 3)")
    add("--num-scenes", type=int, metavar="N", help="at most so many, drawn by seed (default: 40)")
    add("--num-views", type=int, metavar="N", help="drawn from each scene (default: 20)")
    add("--image-width", type=int, metavar="PIXELS", help="of the photos (default: the model's own, or 518)")
    add("--seed", type=int, metavar="N", help="of all draws (default: 0)")


def _add_error_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("errors").add_argument
    add(
        "--point-source",
        choices=("point_head", "depth"),
        help="where VGGT's points come from (default: point_head)",
    )
    add(
        "--truth",
        choices=("depth", "cloud"),
        help="known points: depth maps or the dataset's cloud (default: depth)",
    )
    add("--no-icp", dest="icp", action="store_false", default=None, help="do not refine the alignment")
    add("--min-fitness", type=float, help="least share of variance that an alignment explains (default: 0.7)")
    add("--neighbors", choices=("exact", "faiss"), help="search of nearest points (default: exact)")
    add("--max-points", type=int, metavar="N", help="predicted points per scene (default: 100000)")


def _add_score_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("scores").add_argument
    add("--precision", choices=("float32", "bfloat16"), help="of the model (default: float32)")
    add(
        "--projections",
        metavar="NAMES",
        help="query, or with key and value as query,key,value (default: query)",
    )
    add("--camera-weight", type=float, metavar="λ", help="recommended to users (default: 0.5, for π³ 0)")


def read_options(options: argparse.Namespace) -> CalibrationRun:
    """The run that the options ask for; InputError where they do not fit."""
    from ..config import CalibrationConfig
    from .command import CalibrationRun

    settings = _given(options, *_CONFIG)
    if "projections" in settings:
        settings["projections"] = tuple(settings["projections"].split(","))
    with input_errors(ValueError):
        config = CalibrationConfig(**settings)
    return CalibrationRun(config=config, options=_given(options, *_DATASET), **_given(options, *_PLACES))


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
