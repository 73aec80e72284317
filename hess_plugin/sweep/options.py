"""Options of `hess sweep`; nothing heavy is imported until they are used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, input_errors
from ..evaluation.options import (
    add_metric_options,
    add_protocol_options,
    command_line,
    read_config,
    read_selection,
)
from ..options import DATASET, MODEL, SCENES, add_model_options, add_scene_options, given

if TYPE_CHECKING:
    from .command import SweepRun

EPILOG = """\
Stopped or extended (other presets, methods, more scenes), the same folder keeps what it has. On several GPUs:
accelerate launch --multi_gpu --num_processes N -m hess_plugin sweep OPTIONS. Then: hess report FOLDER."""


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """What is compared, on what, and how it is measured."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_options(parser, default="the embedded one")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the records")
    add("--preset", help="paper, timing, density or small (default: paper)")
    add("--methods", metavar="NAMES", help="only these of the preset, such as hess,reverse")
    add("--hess", metavar="SCORES", help="alias, folder or repository (default: beside the weights)")
    add("--other-hess", metavar="SCORES", help="of another calibration set, for the method swapped")
    gates = "of hess calibrate --gates, for head pruning (default: beside the scores)"
    add("--gates", type=Path, metavar="FOLDER", help=gates)
    base = "of every setting: block sizes, dense_layers, backend, such as backend=triton"
    add("--base", metavar="NAME=VALUE,...", default="", help=base)
    add_scene_options(parser, num_scenes="the preset's", num_views="the preset's, else the protocol's")
    add_protocol_options(parser)
    add_metric_options(parser)


def read_sweep_options(options: argparse.Namespace) -> SweepRun:
    """The sweep that the options ask for; InputError where they do not fit."""
    from ..config import HeSSConfig
    from .command import SHARED, SweepRun

    base = read_config(options.base, "--base")
    unknown = [name for name in base if name not in SHARED]
    if unknown:
        raise InputError(f"--base takes {', '.join(SHARED)}; methods and levels set {unknown[0]}.")
    names = ("out", "preset", "hess", "other_hess", "gates", "truth", "alignment", "device")
    chosen = given(options, *names, *MODEL, *SCENES)
    if options.methods is not None:
        chosen["methods"] = tuple(options.methods.split(","))
    with input_errors(ValueError, TypeError, prefix="--base: "):
        config = HeSSConfig.from_dict(base)
    return SweepRun(
        **chosen,
        protocol_name=options.protocol,
        base=config,
        options=given(options, *DATASET),
        selection=read_selection(options),
        command=command_line(),
    )
