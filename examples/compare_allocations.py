"""Dense, uniform, HeSS and reversed HeSS on held-out synthetic scenes at one density.

    python examples/compare_allocations.py --scenes 24 --density 0.5

Differences to uniform are paired by scene and given with their standard error.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from hess_plugin.datasets import synthetic_scene
from hess_plugin.demo import DemoSettings, load_model, predict_at_density
from hess_plugin.evaluation.compare import Reference, compare
from hess_plugin.tables import format_table

FIRST_SEED = 2_000_000  # neither trained on nor calibrated with
METHODS = ("dense", "uniform", "hess", "reverse")
METRICS = ("auc_30", "ate", "point_error")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.5)
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
    print(format_table(["", "density", *METRICS, "auc_30 - uniform"], _lines(rows)))


def _lines(rows: dict[str, list[list[float]]]) -> list[list[str]]:
    tables = {name: torch.tensor(measured, dtype=torch.float64) for name, measured in rows.items()}
    lines = []
    for name, table in tables.items():
        gap = (table - tables["uniform"])[:, 1]
        error = gap.std() / len(gap) ** 0.5
        lines.append([name, *(f"{value:.4f}" for value in table.mean(0)), f"{gap.mean():+.4f} ± {error:.4f}"])
    return lines


if __name__ == "__main__":
    main()
