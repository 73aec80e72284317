"""Markdown tables in the form of the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..sweep.methods import BASELINE, METHODS, Level
from ..sweep.presets import TABLE_2_LEVELS
from .results import Metric, Sweep

TABLE_1 = (("key", "W_K"), ("value", "W_V"), ("linear", "Linear"), ("softmax", "Softmax"), ("log", "Log"))
TABLE_1_LEVEL = Level(0.8, 0.4)
ACCELERATIONS = (BASELINE, "hess", "michel", "kwon", "merging")
_COST = ("Seconds", "Peak GiB")
_LABELS = {"vggt": "S1", "pi3": "S2"}  # tables of the paper by model family
SIGNIFICANT = 0.05


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left and all others to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def full_results(sweep: Sweep) -> str | None:
    """Tables S1 and S2: uniform and HeSS at each pair of sparse ratio and CDF threshold, the better bold."""
    levels = [level for level in sweep.levels if level.cdf_threshold and "hess" in sweep.methods(level)]
    if not levels:
        return None
    headings = ["Sparse ratio", "CDF thr.", "Sparsity"]
    for metric in sweep.metrics:
        headings += [f"{metric.heading}: SparseVGGT", "Ours", "p"]
    rows = []
    for level in levels:
        row = [f"{level.sparse_ratio:g}", f"{level.cdf_threshold:g}"]
        row.append(f"{1 - sweep.density(BASELINE, level):.2f}")
        for metric in sweep.metrics:
            row += _duel(sweep, level, metric)
        rows.append(row)
    name = _LABELS.get(sweep.run["model"]["family"])
    title = "Uniform against HeSS" + (f" (the paper's Table {name})" if name else "")
    return f"### {title}\n\n{markdown_table(headings, rows)}"


def _duel(sweep: Sweep, level: Level, metric: Metric) -> list[str]:
    uniform, hess = (sweep.cell(name, level, metric) for name in (BASELINE, "hess"))
    if uniform is None or hess is None:
        return ["n/a", "n/a", "n/a"]
    first, second = uniform.value.mean, hess.value.mean
    texts = [metric.format(first), metric.format(second)]
    if metric.is_better(first, second):
        texts[0] = f"**{texts[0]}**"
    elif metric.is_better(second, first):
        texts[1] = f"**{texts[1]}**"
    return [*texts, format_p(hess.p)]


def ablation(sweep: Sweep) -> str | None:
    """Table 1: choices of projection and scaling at (0.8, 0.4); the best of each column bold."""
    present = sweep.methods(TABLE_1_LEVEL) if TABLE_1_LEVEL in sweep.levels else []
    names = [(name, label) for name, label in (*TABLE_1, ("hess", "Ours")) if name in present]
    if len(names) < 2:
        return None
    cells = {name: [sweep.cell(name, TABLE_1_LEVEL, metric) for metric in sweep.metrics] for name, _ in names}
    rows = []
    for name, label in names:
        row = [label]
        for column, metric in enumerate(sweep.metrics):
            cell = cells[name][column]
            others = [c[column].value.mean for c in cells.values() if c[column] is not None]  # type: ignore[union-attr]
            text = "n/a" if cell is None else metric.format(cell.value.mean)
            is_best = cell is not None and not any(metric.is_better(o, cell.value.mean) for o in others)
            row.append(f"**{text}**" if is_best else text)
        rows.append(row)
    arrows = [f"{metric.heading} {'↑' if metric.higher_is_better else '↓'}" for metric in sweep.metrics]
    title = f"Projection and scaling at {TABLE_1_LEVEL.name} (the paper's Table 1)"
    return f"### {title}\n\n{markdown_table(['', *arrows], rows)}"


def runtime(sweep: Sweep) -> str | None:
    """Table 2: seconds and peak memory of a forward pass, dense, uniform and HeSS; None where not timed."""
    levels = [level for level in TABLE_2_LEVELS if level in sweep.levels and "hess" in sweep.methods(level)]
    if not levels or sweep.seconds("dense", None) is None:
        return None
    rows = [["dense", "-", "-", "0.00", *_cost(sweep, "dense", None)]]
    for level in levels:
        for name in (BASELINE, "hess"):
            row = [METHODS[name].label, f"{level.sparse_ratio:g}", f"{level.cdf_threshold:g}"]
            rows.append([*row, f"{1 - sweep.density(name, level):.2f}", *_cost(sweep, name, level)])
    table = markdown_table(["Method", "ρ", "τ", "Sparsity", *_COST], rows)
    return f"### Seconds per forward pass (the paper's Table 2)\n\n{table}\n\n{_how_timed(sweep)}"


def accelerations(sweep: Sweep) -> str | None:
    """All ways to save attention in one table: what they keep, and what they cost; None where not timed."""
    levels = [level for level in sweep.levels if set(sweep.methods(level)) & set(ACCELERATIONS[2:])]
    if not levels or sweep.seconds("dense", None) is None:
        return None
    settings: list[tuple[str, Level | None]] = [("dense", None)]
    settings += [(name, at) for at in levels for name in ACCELERATIONS if name in sweep.methods(at)]
    rows = []
    for name, level in settings:
        cells = [sweep.cell(name, level, metric) for metric in sweep.metrics]
        texts = [
            "n/a" if c is None else m.format(c.value.mean) for c, m in zip(cells, sweep.metrics, strict=True)
        ]
        row = ["" if level is None else level.name, METHODS[name].label, f"{sweep.density(name, level):.4f}"]
        rows.append([*row, *texts, *_cost(sweep, name, level)])
    headings = ["Level", "Method", "Density", *(metric.heading for metric in sweep.metrics), *_COST]
    title = "Accuracy against time and memory, all methods"
    return f"### {title}\n\n{markdown_table(headings, rows)}\n\n{_how_timed(sweep)}"


def _how_timed(sweep: Sweep) -> str:
    return (
        f"On {sweep.run['device']}, {sweep.run['precision']}, attention backend "
        f"`{sweep.run['base']['backend']}`; the first pass of a kind may be slower. This compares methods "
        "with each other; it is no benchmark of attention."
    )


def all_settings(sweep: Sweep) -> str:
    """Every method at every level: measured density, and each metric with its difference to the baseline."""
    parts = ["### All settings"]
    for metric in sweep.metrics:
        rows = [_dense_row(sweep, metric)]
        for level in sweep.levels:
            rows += [_row(sweep, name, level, metric) for name in sweep.methods(level)]
        headings = ["Level", "Method", "Density", metric.heading, "95 %", "− uniform", "95 % ", "p", ""]
        parts.append(f"#### {metric.heading}\n\n{markdown_table(headings, rows)}")
    return "\n\n".join(parts)


def _dense_row(sweep: Sweep, metric: Metric) -> list[str]:
    cell = sweep.cell("dense", None, metric)
    if cell is None:
        return ["", "dense", "1.0000", *["n/a"] * 6]
    interval = _interval(metric, cell.value.low, cell.value.high)
    return ["", "dense", "1.0000", metric.format(cell.value.mean), interval, "", "", "", ""]


def _row(sweep: Sweep, name: str, level: Level, metric: Metric) -> list[str]:
    density = f"{sweep.density(name, level):.4f}"
    if sweep.largest_gap(name, level) > sweep.run["tolerance"]:
        density += " †"
    cell = sweep.cell(name, level, metric)
    row = [level.name, METHODS[name].label, density]
    if cell is None:
        return [*row, *["n/a"] * 5, ""]
    row += [metric.format(cell.value.mean), _interval(metric, cell.value.low, cell.value.high)]
    if name == BASELINE:
        return [*row, "", "", "", ""]
    difference = cell.difference
    verdict = metric.verdict(difference.mean, cell.p < SIGNIFICANT)
    signed = f"{difference.mean:+.4f}"
    return [*row, signed, _interval(metric, difference.low, difference.high), format_p(cell.p), verdict]


def _interval(metric: Metric, low: float, high: float) -> str:
    return f"{metric.format(low)} to {metric.format(high)}"


def _cost(sweep: Sweep, name: str, level: Level | None) -> list[str]:
    """Seconds with their interval if it was timed, and the largest peak of memory, which only a GPU tells."""
    found, peak = sweep.seconds(name, level), sweep.peak_memory(name, level)
    seconds = "n/a" if found is None else f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"
    return [seconds, f"{peak / 2**30:.2f}" if peak else "n/a"]


def format_p(p: float) -> str:
    """Three decimals; smaller ones are said to be smaller."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
