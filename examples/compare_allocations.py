"""Dense, uniform, HeSS and reversed HeSS on held-out synthetic scenes at one density.

    python examples/compare_allocations.py --scenes 24 --density 0.5

Differences to uniform are paired by scene and given with their standard error. With `--out FILE` the means
are written as measurements, which `hess push --evaluation FILE` puts on the card of the scores.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from tqdm import tqdm

from hess_plugin.datasets import synthetic_scene
from hess_plugin.demo import DemoSettings, load_model, predict_at_density
from hess_plugin.evaluation.compare import Reference, compare
from hess_plugin.evaluation.measurements import Measurement, write_measurements
from hess_plugin.tables import format_table

FIRST_SEED = 2_000_000  # neither trained on nor calibrated with
METHODS = ("dense", "uniform", "hess", "reverse")
METRICS = ("auc_30", "ate", "point_error")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the means as measurements (JSON)")
    args = parser.parse_args(arguments)

    model, scores = load_model(DemoSettings())
    rows: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + args.scenes), unit="scene"):
        scene = synthetic_scene(seed, args.views)
        reference = Reference.from_scene(scene)
        for method, measured in rows.items():
            prediction = predict_at_density(model, scores, scene, method, args.density)
            metrics = compare(prediction, reference)
            measured.append([prediction.density, *(metrics[key] for key in METRICS)])
    tables = {method: torch.tensor(measured, dtype=torch.float64) for method, measured in rows.items()}
    print(format_table(["", "density", *METRICS, "auc_30 - uniform"], _lines(tables)))
    if args.out:
        write_measurements(args.out, _measurements(tables, args))


def _lines(tables: dict[str, torch.Tensor]) -> list[list[str]]:
    lines = []
    for name, table in tables.items():
        gap = (table - tables["uniform"])[:, 1]
        error = gap.std() / len(gap) ** 0.5
        lines.append([name, *(f"{value:.4f}" for value in table.mean(0)), f"{gap.mean():+.4f} ± {error:.4f}"])
    return lines


def _measurements(tables: dict[str, torch.Tensor], args: argparse.Namespace) -> list[Measurement]:
    options = f"--scenes {args.scenes} --views {args.views} --density {args.density:g}"
    return [
        Measurement(
            dataset="synthetic",
            method=method,
            metric=metric,
            value=value,
            density=float(table[:, 0].mean()),
            num_scenes=args.scenes,
            num_views=args.views,
            command=f"python examples/compare_allocations.py {options}",
        )
        for method, table in tables.items()
        for metric, value in zip(METRICS, table[:, 1:].mean(0).tolist(), strict=True)
        if math.isfinite(value)  # ate is NaN where the cameras of a scene lie on one line
    ]


if __name__ == "__main__":
    main()
