"""Options of `hess predict` and `hess evaluate`; nothing heavy is imported until they are used."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, input_errors
from ..options import DATASET, MODEL, SCENES, add_model_options, add_scene_options, given

if TYPE_CHECKING:
    from ..baselines.choice import Baseline
    from ..config import HeSSConfig
    from .command import PredictionRun
    from .evaluate import EvaluationRun
    from .protocols import Selection

EPILOG = """\
Stopped, the same command goes on where it ended. With several processes:
accelerate launch --multi_gpu --num_processes N -m hess_plugin predict OPTIONS."""
PROTOCOLS = "scene, co3d-vggt, co3d-pi3, dtu-pi3 or dtu-official"
_SELECTION = ("num_scenes", "num_views", "seed", "min_frames", "fast", "frames")


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Options of a run of a model over scenes."""
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    add_model_options(parser, default="the embedded one")
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="for the predictions")
    about = "run sparse: settings of HeSSConfig such as sparse_ratio=0.8,cdf_threshold=0.4 (default: dense)"
    add("--sparse", metavar="NAME=VALUE,...", nargs="?", const="", help=about)
    about = "run a baseline: michel, kwon or merging and settings, such as kwon,kept_share=0.5"
    add("--baseline", metavar="NAME[,NAME=VALUE,...]", help=about)
    scores = "alias, folder or repository (default: beside the weights); their scenes are left out"
    add("--hess", metavar="SCORES", help=scores)
    gates = "of hess calibrate --gates, for michel and kwon (default: beside the scores); likewise"
    add("--gates", type=Path, metavar="FOLDER", help=gates)
    add("--cameras-only", action="store_true", default=None, help="keep no points and depth")
    add_scene_options(parser, num_scenes="24", num_views="the protocol's; 16", required=False)
    add_protocol_options(parser)


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Which views, and how predictions become numbers."""
    add = parser.add_argument_group("protocol").add_argument
    add("--protocol", help=f"{PROTOCOLS} (default: the first that is made for the dataset)")
    add("--fast", action="store_true", default=None, help="co3d-vggt: 10 sequences per category")
    add("--min-frames", type=int, metavar="N", help="co3d-vggt: of a sequence (default: 50)")
    add("--frames", type=Path, metavar="FILE", help="co3d-pi3: JSON, {sequence: [positions in its set list]}")


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Those, and how predictions become numbers."""
    add_predict_options(parser)
    add_metric_options(parser)
    add = parser.add_argument
    only = "measure these predictions again, run nothing"
    add("--predictions", type=Path, metavar="FOLDER", help=only)
    left = "leave out scenes that could not be predicted"
    add("--skip-failed", action="store_true", default=None, help=left)


def add_metric_options(parser: argparse.ArgumentParser) -> None:
    """What some protocols need to turn predictions into numbers."""
    add = parser.add_argument_group("metrics").add_argument
    root = "dtu-official: with Points/stl and ObsMask (default: --root)"
    add("--truth", type=Path, metavar="FOLDER", help=root)
    how = "dtu-official: into the scan's world by camera centres or known pixels (default: cameras)"
    add("--alignment", choices=("cameras", "pixels"), help=how)


def read_predict_options(options: argparse.Namespace) -> PredictionRun:
    """The run that the options ask for; InputError where they do not fit."""
    from .command import PredictionRun

    for name in ("dataset", "out"):
        if getattr(options, name) is None:
            raise InputError(f"--{name} is needed to predict.")
    return PredictionRun(
        **given(options, "out", "device", "cameras_only", "hess", "gates", *MODEL, *SCENES),
        protocol_name=options.protocol,
        options=given(options, *DATASET),
        selection=read_selection(options),
        attention=read_attention(options),
        command=command_line(),
    )


def read_evaluate_options(options: argparse.Namespace) -> tuple[PredictionRun | None, EvaluationRun]:
    """What is to be predicted first, None if nothing, and what is to be measured."""
    from .evaluate import EvaluationRun

    prediction = None if options.predictions else read_predict_options(options)
    chosen = given(options, "protocol", "truth", "alignment", "skip_failed")
    if options.root is not None:
        chosen.setdefault("truth", options.root)
    return prediction, EvaluationRun(options.predictions or options.out, **chosen, command=command_line())


def read_attention(options: argparse.Namespace) -> HeSSConfig | Baseline | None:
    """The setting of `--sparse` or `--baseline`; None for dense."""
    if options.sparse is not None and options.baseline is not None:
        raise InputError("--sparse and --baseline are two ways to run a model; give one of them.")
    if options.baseline is not None:
        return _read_baseline(options.baseline)
    return None if options.sparse is None else _read_sparsity(options.sparse)


def _read_sparsity(text: str) -> HeSSConfig:
    from ..config import HeSSConfig

    values = read_config(text, "--sparse")
    if "scores" in values:
        raise InputError("--sparse takes no scores; name them by --hess.")
    with input_errors(ValueError, TypeError, prefix="--sparse: "):
        return HeSSConfig.from_dict(values)


def _read_baseline(text: str) -> Baseline:
    from ..baselines.choice import baseline_named

    name, _, settings = text.partition(",")
    values = read_config(settings, "--baseline")
    with input_errors(ValueError, TypeError, prefix="--baseline: "):
        return baseline_named(name, values)


def read_config(text: str, option: str) -> dict[str, Any]:
    """Values by name of "NAME=VALUE,..."; numbers and lists as in JSON, all else as text."""
    values: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", text)):  # not at commas of a list
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{option} takes settings as NAME=VALUE,..., got {part!r}.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def read_selection(options: argparse.Namespace) -> Selection:
    """Which scenes and views are asked for."""
    from .protocols import Selection

    return Selection(**given(options, *_SELECTION))


def command_line() -> str:
    """The command as it was called; absolute paths, which say nothing to others, by their last part."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["hess", *shown])
