"""Where the time of a step of `train_tiny_vggt.py` goes, for each number of views and size of photos.

    python examples/profile_training.py --compile --start-from hess_plugin/assets/tiny_vggt --out profile.json
    python examples/profile_training.py --toy --kernels 10

Milliseconds are medians ± the median deviation from them. "scenes" draws and renders scenes and changes
their look; "optimizer" clips gradients, steps and averages the weights. On a GPU times lie between CUDA
events, and no step waits for the one before: as in a training, the host may run ahead, and where it is slower
than the GPU its time counts. "first" is the first step of a shape, which compiles what the rows above have
not. The last row adds up first steps; its means weigh shapes by their share of lessons at full difficulty.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import train_tiny_vggt
from tiny_vggt_recipe import Recipe
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from hess_plugin.benchmark.stopwatch import Stopwatch
from hess_plugin.tables import format_table

DRAWN = 10_000  # lessons, to learn which shapes the recipe gives how often
WARM_UP = 2  # steps after the first
SCENES, PASSES, OPTIMIZER, STEP = PARTS = ("scenes", "forward + backward", "optimizer", "step")
HEADINGS = ("views, size", "share", "first s", *(f"{part} ms" for part in PARTS), "views/s", "peak GB")


@dataclass(frozen=True)
class OneShape(Recipe):
    """A recipe of which all lessons are at full difficulty and have the same number of views."""

    num_views: int = 0

    def lesson(self, progress: float, step: int) -> tuple[int, tuple[int, int], tuple[float, float]]:
        return self.num_views, *super().lesson(1.0, step)[1:]


def timed_step(training: train_tiny_vggt.Training) -> Stopwatch:
    """One step of the training with its parts timed; on a GPU, without waiting for it."""
    watch = Stopwatch(training.device)

    def timed(part: str, owner: Any, name: str) -> AbstractContextManager[Any]:
        function = getattr(owner, name)

        def call(*args: Any) -> Any:
            with watch.span(part):
                return function(*args)

        return patch.object(owner, name, call)

    with (
        timed(SCENES, train_tiny_vggt, "draw_lesson"),
        timed(SCENES, train_tiny_vggt, "make_batch"),
        timed(PASSES, training, "lesson"),
        timed(PASSES, training.accelerator, "backward"),
        watch.span(STEP),
    ):
        training.learn()
    return watch


def measure(training: train_tiny_vggt.Training, repeats: int) -> dict[str, Any]:
    """Seconds of the first step, milliseconds of the parts of later ones, and peak GB of GPU memory."""
    cuda = training.device.type == "cuda"
    first = timed_step(training).seconds()[STEP]
    for _ in range(WARM_UP):
        timed_step(training)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    watches = [timed_step(training) for _ in range(repeats)]
    times = {part: [1000 * watch.seconds()[part] for watch in watches] for part in (SCENES, PASSES, STEP)}
    others = zip(times[STEP], times[SCENES], times[PASSES], strict=True)
    times[OPTIMIZER] = [step - scenes - passes for step, scenes, passes in others]
    return {"first": first, "ms": times, "peak": torch.cuda.max_memory_allocated() / 1e9 if cuda else None}


def table(results: list[dict[str, Any]], views_per_step: int) -> str:
    """A row for each shape and one for all of them."""
    rows, mean = [], dict.fromkeys(PARTS, 0.0)
    for result in results:
        middle = {part: median(result["ms"][part]) for part in PARTS}
        off = {part: median(abs(ms - middle[part]) for ms in result["ms"][part]) for part in PARTS}
        mean = {part: mean[part] + result["share"] * middle[part] for part in PARTS}
        row = [f"{result['views']:2} of {result['height']:3} x {result['width']:3}", f"{result['share']:.1%}"]
        row += [f"{result['first']:.1f}", *(f"{middle[part]:.1f} ± {off[part]:4.1f}" for part in PARTS)]
        row += [f"{1000 * views_per_step / middle[STEP]:.0f}"]
        rows.append([*row, f"{result['peak']:.1f}" if result["peak"] else "-"])
    first = sum(result["first"] for result in results)
    means = [f"{mean[part]:.1f}       " for part in PARTS]
    rows.append(["all", "", f"{first:.1f}", *means, f"{1000 * views_per_step / mean[STEP]:.0f}", ""])
    return format_table(HEADINGS, rows)


def costliest(training: train_tiny_vggt.Training, count: int) -> str:
    """The kernels, on a CPU the operators, that take most of one step."""
    cuda = training.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        timed_step(training).seconds()  # waits for the GPU
    own = "self_device_time_total" if cuda else "self_cpu_time_total"  # microseconds
    found = sorted(((getattr(x, own) / 1000, x.count, x.key) for x in profiler.key_averages()), reverse=True)
    rows = [[name[:80], f"{ms:.2f}", str(calls)] for ms, calls, name in found[:count]]
    return format_table(["costliest", "ms", "calls"], [*rows, ["all", f"{sum(x[0] for x in found):.2f}", ""]])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("--compile", "--toy"):
        parser.add_argument(option, action="store_true", help="as for train_tiny_vggt.py")
    parser.add_argument("--start-from", metavar="FOLDER", help="as for train_tiny_vggt.py")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each shape")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="list the N costliest")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all times (JSON)")
    args = parser.parse_args(arguments)

    options = train_tiny_vggt.parse_arguments(["nowhere", "--steps", "1"])
    options.compile, options.toy, options.start_from = args.compile, args.toy, args.start_from
    training = train_tiny_vggt.Training(options)
    recipe, cuda = training.recipe, training.device.type == "cuda"
    drawn = Counter(recipe.lesson(1.0, step)[:2] for step in range(DRAWN))
    results = []
    for (views, size), count in tqdm(sorted(drawn.items()), unit="shape"):
        training.recipe = OneShape(**vars(recipe) | {"image_sizes": (size,), "num_views": views})
        shape = {"views": views, "height": size[0], "width": size[1], "share": count / DRAWN}
        results.append(shape | measure(training, args.repeats))
    device = torch.cuda.get_device_name() if cuda else "cpu"
    about = {"device": device, "torch": torch.__version__, "views_per_step": recipe.views_per_step}
    about["command"] = " ".join(sys.argv)
    print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()))
    print(table(results, recipe.views_per_step))
    if args.kernels:
        print(costliest(training, args.kernels))
    if args.out:
        args.out.write_text(json.dumps(about | {"shapes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
