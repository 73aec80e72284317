"""Dense, uniform, HeSS and reversed HeSS on held-out synthetic scenes at one density.

    python examples/compare_allocations.py --scenes 24 --density 0.5

Differences to uniform are paired by scene and given with their standard error.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from hess_plugin import HeSSConfig, VggtModel, apply_hess
from hess_plugin.datasets import synthetic_scene
from hess_plugin.demo import EMBEDDED_MODEL
from hess_plugin.evaluation.compare import Reference, compare
from hess_plugin.evaluation.predict import predict
from hess_plugin.scores import HeadScores
from hess_plugin.tables import format_table

FIRST_SEED = 2_000_000  # neither trained on nor calibrated with
ALLOCATIONS = ("uniform", "hess", "reverse")
METRICS = ("auc_30", "ate", "point_error")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--density", type=float, default=0.5)
    args = parser.parse_args(arguments)

    model = VggtModel.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = HeadScores.load(EMBEDDED_MODEL / "hess" / "synthetic")
    rows: dict[str, list[list[float]]] = {name: [] for name in ("dense", *ALLOCATIONS)}
    for seed in tqdm(range(FIRST_SEED, FIRST_SEED + args.scenes), unit="scene"):
        scene = synthetic_scene(seed, args.views)
        reference = Reference.from_scene(scene)
        for name, measured in rows.items():
            if name == "dense":
                prediction = predict(model, scene)
            else:
                config = HeSSConfig(sparse_ratio=1 - args.density, cdf_threshold=0.0, allocation=name)
                with apply_hess(model, scores, config) as handle:
                    prediction = predict(model, scene, handle)
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
