"""Command-line options of `hess calibrate`; nothing heavy is imported until they are used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import input_errors
from ..options import DATASET, MODEL, SCENES, add_model_options, add_scene_options, given

if TYPE_CHECKING:
    from .command import CalibrationRun

EPILOG = """\
On several GPUs: accelerate launch -m hess_plugin.calibrate OPTIONS.
On a CPU each process uses one core, so that sums are rounded alike for any number of processes; on two cores:
accelerate launch --multi_gpu --num_processes 2 -m hess_plugin.calibrate OPTIONS (--cpu starts one process).
The scores are the same bytes each time."""

_PLACES = (*MODEL, *SCENES, "out", "device", "resume", "skip_failed")
_CONFIG = (
    *("num_scenes", "num_views", "seed", "point_source", "truth", "icp", "neighbors", "max_points"),
    *("min_fitness", "precision", "projections", "gates", "camera_weight"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options of the command, in groups; the defaults live where they are used."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_options(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the sidecar and the records")
    more = "go on where a run in --out was stopped, or with another --num-scenes where it ended"
    add("--resume", action="store_true", default=None, help=more)
    add("--skip-failed", action="store_true", default=None, help="leave out scenes that cannot be used")
    add_scene_options(parser, num_scenes="40", num_views="20")
    _add_error_options(parser)
    _add_score_options(parser)


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
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of the model (default: bfloat16 on a GPU, else float32)",
    )
    add(
        "--projections",
        metavar="NAMES",
        help="query, or with key and value as query,key,value (default: query)",
    )
    gates = "also head_gates.safetensors, for the pruning baselines of hess sweep"
    add("--gates", action="store_true", default=None, help=gates)
    add("--camera-weight", type=float, metavar="λ", help="recommended to users (default: 0.5, for π³ 0)")


def read_options(options: argparse.Namespace) -> CalibrationRun:
    """The run that the options ask for; InputError where they do not fit."""
    from ..config import CalibrationConfig
    from .command import CalibrationRun

    settings = given(options, *_CONFIG)
    if "projections" in settings:
        settings["projections"] = tuple(settings["projections"].split(","))
    with input_errors(ValueError):
        config = CalibrationConfig(**settings)
    return CalibrationRun(config=config, options=given(options, *DATASET), **given(options, *_PLACES))
