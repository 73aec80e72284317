"""The command `hess report`: sweeps and predictions in; Markdown tables, figures, a page and clouds out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import InputError, input_errors
from ..evaluation.measurements import Measurement, write_measurements
from ..evaluation.predictions import RUN_FILE
from ..files import write_atomic
from ..plots.figure import png, svg
from ..sweep.methods import BASELINE, Level
from ..tables import count_of
from .claims import claims
from .figures import COMPARISONS, comparison_figure, heatmap_figure, stability_figure
from .page import write_report_page
from .results import Sweep
from .scenes import Predictions
from .tables import SIGNIFICANT, ablation, accelerations, all_settings, full_results, runtime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE, PAGE_FILE, FIGURES, CLOUDS = "report.md", "index.html", "figures", "clouds"
MEASUREMENTS_FILE = "measurements.json"  # for `hess push --evaluation`, behind the name of the sweep


@dataclass(frozen=True)
class ReportRun:
    """Which sweeps and predictions are reported, and where to."""

    folders: tuple[Path, ...]
    out: Path
    scenes: tuple[str, ...] = ()  # on the page; none: some, evenly spaced
    command: str = "hess report"


def run_report(run: ReportRun) -> None:
    """Write `index.html`; of sweeps `report.md`, `figures/` and measurements; of predictions `clouds/`.

    Measurements are for cards. Files of these names are replaced, others stay.

    Raises:
        InputError: a folder holds neither sweep nor predictions, two sweeps have one name, predictions do not
            fit together, the result cannot be written, or an optional package is missing.
    """
    predicted = [folder for folder in run.folders if (folder / RUN_FILE).is_file()]
    sweeps = [Sweep.read(folder) for folder in run.folders if folder not in predicted]
    twice = [name for name, count in Counter(sweep.name for sweep in sweeps).items() if count > 1]
    if twice:
        raise InputError(f"two sweeps are named {twice[0]!r}, which names their figures; rename a folder.")
    predictions = Predictions.read(predicted, run.scenes) if predicted else None
    with input_errors(OSError, ImportError, prefix=f"cannot write to {run.out}: "):
        run.out.mkdir(parents=True, exist_ok=True)
        sections = [_write_section(sweep, run.out) for sweep in tqdm(sweeps, desc="reporting", disable=None)]
        if sections:
            head = "# Results of sweeps\n\nWritten by `" + run.command + "`; each number is printed by it."
            write_atomic(run.out / REPORT_FILE, ("\n\n".join([head, *sections]) + "\n").encode())
        scores = [sweep.scores for sweep in sweeps]
        page = run.out / PAGE_FILE
        write_report_page(page, run.out / CLOUDS, predictions, sections, scores, run.command)


def _write_section(sweep: Sweep, out: Path) -> str:
    (out / FIGURES).mkdir(exist_ok=True)
    write_measurements(out / f"{sweep.name}_{MEASUREMENTS_FILE}", measurements_of(sweep))
    return _section(sweep, list(_write_figures(sweep, out)))


def measurements_of(sweep: Sweep) -> Iterator[Measurement]:
    """Dense, uniform and HeSS at all levels, as a card of the scores lists them."""
    settings: list[tuple[str, Level | None]] = [("dense", None)]
    settings += [(name, level) for level in sweep.levels for name in (BASELINE, "hess")]
    for name, level in settings:
        for metric in sweep.metrics:
            cell = sweep.cell(name, level, metric)
            if cell is not None:
                yield Measurement(
                    dataset=sweep.run["dataset"],
                    method=name,
                    metric=metric.key,
                    value=cell.value.mean,
                    density=sweep.density(name, level),
                    num_scenes=cell.num_scenes,
                    num_views=sweep.num_views,
                    command="; ".join(sweep.run["commands"]),
                )


def _write_figures(sweep: Sweep, out: Path) -> Iterator[str]:
    """Each figure as PNG and SVG; gives a line of Markdown for each."""
    for name, title, figure in _figures(sweep):
        if figure is not None:
            stem = f"{sweep.name}_{name}"
            write_atomic(out / FIGURES / f"{stem}.png", png(figure))
            write_atomic(out / FIGURES / f"{stem}.svg", svg(figure))
            yield f"![{title}]({FIGURES}/{stem}.png)"


def _figures(sweep: Sweep) -> Iterator[tuple[str, str, Figure | None]]:
    for comparison in COMPARISONS:
        yield comparison.file, comparison.title, comparison_figure(sweep, comparison)
    yield "heatmap", "Sensitivity of each head (Fig. 4)", heatmap_figure(sweep)
    yield "stability", "How many calibration scenes are enough", stability_figure(sweep)


def _section(sweep: Sweep, pictures: Sequence[str]) -> str:
    made = (full_results, ablation, runtime, accelerations, all_settings)
    tables = [table(sweep) for table in made]
    body = [f"## {sweep.name}", _about(sweep), claims(sweep), *pictures, *tables, _notes(sweep)]
    return "\n\n".join(filter(None, body))


def _about(sweep: Sweep) -> str:
    run, info = sweep.run, sweep.scores.info
    measured = sum(bool(of_scene) for of_scene in sweep.records.values())
    views = count_of(run["num_views"], "view") if run["num_views"] else "all views"
    asked = count_of(len(sweep.records), "scene")
    scenes = asked if measured == len(sweep.records) else f"{measured} of {asked}"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    model = run["model"]
    revision = f"@{model['revision']}" if model["revision"] else ""
    return "\n".join(
        [
            "```bash",
            *run["commands"],
            "```",
            f"- model {model['name']}{revision} ({model['family']}, weights {model['sha256'][:12]})",
            f"- {scenes} of {run['dataset']} x {views}, seed {run['seed']}; none of them was calibrated on",
            f"- scores of {count_of(len(info.scene_ids), 'scene')} of {info.dataset}",
            f"- protocol `{run['protocol']}`: {run['about']}"
            + (f"; alignment by {run['alignment']}" if run["alignment"] else ""),
            f"- {run['device']}, {run['precision']}, {versions}",
        ]
    )


def _notes(sweep: Sweep) -> str:
    compared = sum(len(sweep.methods(level)) - 1 for level in sweep.levels)
    tolerance = sweep.run["tolerance"]
    by_chance = f"{SIGNIFICANT * compared:.0f}"
    notes = [
        "Density is the measured share of attended blocks, mean over scenes. All methods of a level run at "
        f"the density of `{BASELINE}` on each scene, to {tolerance:g}; † marks a method that has no such "
        "setting on some scene, so that its row is no comparison at equal density.",
        "Differences are paired by scene. Intervals are 95 % percentile bootstrap intervals over scenes; p "
        "is that of a two-sided sign-flip test of the mean difference. It says better or worse where "
        f"p < {SIGNIFICANT:g}, without a correction for the {compared} comparisons per metric: about "
        f"{by_chance} of them would say so by chance alone.",
    ]
    if sweep.seconds("dense", None) is None:
        notes.append(
            "Seconds were not kept, since several processes shared the device; preset `timing` measures them."
        )
    if sweep.num_missing:
        notes.append(
            f"{sweep.num_missing} measurements are missing: the sweep was stopped, or extended on "
            "other scenes. Each row is over the scenes that have it, so rows may be over different scenes."
        )
    failures = sweep.failures
    if failures:
        first, reason = next(iter(failures.items()))
        notes.append(f"{len(failures)} measurements failed and are left out, such as {first}: {reason}.")
    return "### How to read this\n\n" + "\n".join(f"- {note}" for note in notes)
