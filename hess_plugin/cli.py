"""The command `hess`: parses, calls, prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, input_errors

USAGE_ERROR = 2  # exit code of argparse, and of everything else that the user can mend


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend is one line, a bug its traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"hess {options.command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hess", description="Sparse global attention for VGGT-family models, guided by head sensitivity."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_calibrate(commands)
    _add_inspect(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    about = "reconstruct scenes with dense, uniform and HeSS attention and compare them"
    demo = commands.add_parser("demo", help=about, description=about.capitalize() + ".")
    demo.add_argument("--images", type=Path, metavar="FOLDER", help="your photos instead of the examples")
    demo.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: ./hess-demo)")
    demo.add_argument("--density", type=float, help="share of attention blocks to keep (default: 0.5)")
    demo.add_argument("--views", type=int, help="photos per scene, evenly spaced (default: 16)")
    demo.add_argument("--model", help="folder or repository of a VGGT checkpoint (default: the embedded one)")
    demo.add_argument("--hess", help="scores: alias, folder or repository (default: beside the weights)")
    demo.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from .demo import DemoSettings, run_demo
    from .demo_results import format_summary

    given = _given(options, "images", "out", "density", "views", "model", "hess", "device")
    settings = DemoSettings(**given)
    print(format_summary(run_demo(settings)))
    print(f"\nPictures, point clouds, cameras and numbers: {settings.out}/ (first contact_sheet.png)")


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    about = "measure how sensitive each head of a model is and write a sidecar"
    calibrate = commands.add_parser("calibrate", help=about, description=about.capitalize() + ".")
    calibrate.add_argument("--model", required=True, help="folder or repository of a VGGT checkpoint")
    calibrate.add_argument("--dataset", required=True, help="synthetic, or folder (see --root)")
    calibrate.add_argument("--root", type=Path, metavar="FOLDER", help="holds one folder per scene")
    calibrate.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the sidecar")
    calibrate.add_argument("--num-scenes", type=int, help="at most so many (default: 40)")
    calibrate.add_argument("--num-views", type=int, help="drawn from each scene (default: 20)")
    calibrate.add_argument("--max-points", type=int, help="predicted points per scene (default: 100000)")
    calibrate.add_argument("--camera-weight", type=float, help="recommended to users (default: 0.5)")
    calibrate.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    calibrate.set_defaults(run=_calibrate)


def _calibrate(options: argparse.Namespace) -> None:
    from .calibration.run import CalibrationRun, run_calibration
    from .config import CalibrationConfig

    settings = _given(options, "num_scenes", "num_views", "max_points", "camera_weight")
    with input_errors(ValueError):
        config = CalibrationConfig(**settings)
    places = _given(options, "model", "dataset", "root", "out", "device")
    run_calibration(CalibrationRun(config=config, **places))
    print(f"Scores: {options.out}/ (look at them with `hess inspect {options.out}`)")


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    about = "print what a sidecar holds"
    inspect = commands.add_parser("inspect", help=about, description=about.capitalize() + ".")
    inspect.add_argument("sidecar", metavar="SIDECAR", help="folder, or org/repo[@revision][:alias]")
    inspect.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    from .sidecar import resolve
    from .tables import format_scores

    folder = Path(options.sidecar).expanduser()
    with input_errors(ValueError):
        sidecar: Any = resolve(folder if folder.exists() else options.sidecar, base=None)
    print(format_scores(sidecar.scores))


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the defaults of the others live where they are used."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}
