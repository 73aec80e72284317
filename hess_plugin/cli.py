"""The command `hess`: parses, calls, prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from .calibration.options import add_options, read_options
from .config import Backend
from .errors import InputError, input_errors
from .evaluation.options import (
    add_evaluate_options,
    add_predict_options,
    read_evaluate_options,
    read_predict_options,
)
from .options import given
from .report.options import add_report_options, read_report_options
from .sweep.options import add_sweep_options, read_sweep_options

USAGE_ERROR = 2  # exit code of argparse, and of everything else that the user can mend
INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT
RESUME = {"calibrate": "; go on with --resume"} | dict.fromkeys(
    ("predict", "evaluate", "sweep"), "; the same command goes on"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend is one line, a bug its traceback."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"hess {options.command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"\nhess {options.command}: interrupted{RESUME.get(options.command, '')}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hess", description="Sparse global attention for VGGT-family models, guided by head sensitivity."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for run, about, add in _commands():
        name = run.__name__.removeprefix("_")
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        add(command)
        command.set_defaults(run=run)
    return parser


def _commands() -> tuple[tuple[Callable, str, Callable], ...]:
    """Of each command: the function of its name that runs it, what it does, and what adds its options."""
    return (
        (
            _demo,
            "reconstruct scenes with dense, uniform and HeSS attention and compare them",
            _demo_options,
        ),
        (_calibrate, "measure how sensitive each head of a model is and write a sidecar", add_options),
        (_predict, "run a model over scenes and keep its predictions", add_predict_options),
        (
            _evaluate,
            "predict scenes and measure the predictions, or measure those that are there",
            add_evaluate_options,
        ),
        (_sweep, "compare methods at equal measured density, scene by scene", add_sweep_options),
        (_report, "show sweeps and predictions: tables, figures, a page with 3D views", add_report_options),
        (
            _bench,
            "time VGGT-1B of random weights over the number of views, dense and sparse",
            _bench_options,
        ),
        (_inspect, "print what a sidecar holds, and how sure its scores are", _inspect_options),
        (_push, "put a sidecar with its card on the Hub, in one commit", _push_options),
        (_pull, "copy a sidecar from the Hub into a folder", _pull_options),
    )


def _demo_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", type=Path, metavar="FOLDER", help="your photos instead of the examples")
    add("--out", type=Path, metavar="FOLDER", help="where results go (default: ./hess-demo)")
    add("--density", type=float, help="share of attention blocks to keep (default: 0.5)")
    add("--views", type=int, help="photos per scene, evenly spaced (default: 24)")
    add("--model", help="folder or repository of a VGGT checkpoint (default: the embedded one)")
    add("--hess", help="scores: alias, folder or repository (default: beside the weights)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def _demo(options: argparse.Namespace) -> None:
    from .demo import DemoSettings, run_demo
    from .demo_results import format_summary

    chosen = given(options, "images", "out", "density", "views", "model", "hess", "device")
    settings = DemoSettings(**chosen)
    print(format_summary(run_demo(settings)))
    print(f"\nPictures, point clouds, cameras and numbers: {settings.out}/ (open index.html in a browser)")


def _calibrate(options: argparse.Namespace) -> None:
    from .calibration.command import run_calibration

    run_calibration(read_options(options))


def _predict(options: argparse.Namespace) -> None:
    from .evaluation.command import run_prediction

    run = read_predict_options(options)
    if run_prediction(run):
        print(f"Predictions: {run.out}/ (measure them with `hess evaluate --predictions {run.out}`)")


def _evaluate(options: argparse.Namespace) -> None:
    from .evaluation.command import run_prediction
    from .evaluation.evaluate import run_evaluation

    prediction, evaluation = read_evaluate_options(options)
    if prediction is None or run_prediction(prediction):
        run_evaluation(evaluation)


def _sweep(options: argparse.Namespace) -> None:
    from .sweep.command import run_sweep

    run = read_sweep_options(options)
    if run_sweep(run):
        print(f"Records: {run.out}/ (tables and figures: `hess report {run.out} --out FOLDER`)")


def _report(options: argparse.Namespace) -> None:
    from .report.command import run_report

    run = read_report_options(options)
    run_report(run)
    print(f"Report: {run.out}/ (open index.html in a browser)")


def _bench_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="where results go (default: ./hess-bench)")
    add("--views", type=int, nargs="+", help="default: 50 100 200 350 500 1000")
    add("--dense-views", type=int, help="most views of the dense model (default: 500)")
    add("--density", type=float, help="share of attention blocks to keep (default: 0.25)")
    add("--backend", choices=get_args(Backend), help="of sparse attention (default: auto)")
    add("--height", type=int, help="of the images in pixels (default: 392)")
    add("--width", type=int, help="of the images in pixels (default: 518)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def _bench(options: argparse.Namespace) -> None:
    from .benchmark.run import BenchSettings, run_bench

    names = ("out", "views", "dense_views", "density", "backend", "height", "width", "device")
    values = given(options, *names)
    settings = BenchSettings(**values | ({"views": tuple(values["views"])} if "views" in values else {}))
    run_bench(settings)
    print(f"\nNumbers and picture: {settings.out}/")


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sidecar", metavar="SIDECAR", help="folder, or org/repo[@revision][:alias]")
    add("--picture", type=Path, metavar="FILE.png", help="also draw the scores as heat maps")


def _inspect(options: argparse.Namespace) -> None:
    from .calibration.summary import format_summary
    from .plots import score_heatmap
    from .plots.figure import save
    from .sidecar import resolve
    from .tables import format_scores

    folder = Path(options.sidecar).expanduser()
    is_repository = "/" in options.sidecar and not folder.exists()
    with input_errors(ValueError):
        sidecar: Any = resolve(options.sidecar if is_repository else folder, base=None)
        scores = sidecar.scores
        print(format_scores(scores), format_summary(scores), sep="\n\n")
    if options.picture:
        with input_errors(ImportError, OSError, prefix=f"cannot draw {options.picture}: "):
            save(score_heatmap(scores.shares()), options.picture)
        print(f"\nPicture: {options.picture}")


def _push_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="holds the sidecar")
    add("repo_id", metavar="REPO", help="user/name; without --alias it is made if needed")
    add("--alias", help="add to the model repository REPO under this name, as hess/ALIAS/")
    add("--revision", metavar="BRANCH", help="made if needed (default: main)")
    add("--private", action="store_true", default=None, help="make a private repository")
    add("--create-pr", action="store_true", default=None, help="propose it by a pull request")
    add("--evaluation", type=Path, metavar="FILE", help="measurements (JSON) for the card")


def _push(options: argparse.Namespace) -> None:
    from .gates import HeadGates
    from .publish import push_to_hub
    from .sidecar import resolve

    sidecar: Any = resolve(options.folder, base=None)
    choices = given(options, "alias", "revision", "private", "create_pr", "evaluation")
    with input_errors(ImportError):
        gates = HeadGates.beside(sidecar.folder)
        pushed = push_to_hub(sidecar.scores, options.repo_id, gates=gates, **choices)
    print(f"{'Pushed' if pushed.changed else 'Nothing to push, the same is there'}: {pushed.url}")


def _pull_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="SIDECAR", help="org/repo[@revision][:alias]")
    add("--out", type=Path, required=True, metavar="FOLDER", help="new or empty")


def _pull(options: argparse.Namespace) -> None:
    from .sidecar import pull

    pull(options.name, options.out)
    print(f"Scores: {options.out}/ (look at them with `hess inspect {options.out}`)")
