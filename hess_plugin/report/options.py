"""Options of `hess report`; nothing heavy is imported until they are used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.options import command_line

if TYPE_CHECKING:
    from .command import ReportRun


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Which sweeps and predictions, and where to."""
    add = parser.add_argument
    about = "of `hess sweep` (a section each) or `hess predict` (a method each)"
    add("folders", type=Path, nargs="+", metavar="FOLDER", help=about)
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="for index.html, report.md, figures/, clouds/",
    )
    add(
        "--scenes",
        nargs="+",
        metavar="ID",
        help="of the predictions, to be shown (default: 6, evenly spaced)",
    )


def read_report_options(options: argparse.Namespace) -> ReportRun:
    """The report that the options ask for."""
    from .command import ReportRun

    return ReportRun(tuple(options.folders), options.out, tuple(options.scenes or ()), command_line())
