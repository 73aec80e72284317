"""Seconds and memory per calibration scene, with the full VGGT-1B architecture at 518 pixels.

    python examples/benchmark_calibration.py
    accelerate launch --multi_gpu --num_processes 2 examples/benchmark_calibration.py

Weights are random, which costs the model the same time and memory as trained ones: none of its steps depends
on values. The errors do, and are set so that no work is saved: every alignment is taken, however badly it
fits, and the inlier radius is so large that all points count. ICP may need other numbers of rounds than on
good points. Photos are procedural and in memory, so reading files is not measured. A first scene warms up.

Measured in November 2026 with `--no-icp --scenes 4` (torch 2.11.0+cu130, Triton 3.6.0, transformers 5.17.0):

    1 x NVIDIA H100 80GB HBM3: both errors in 4.50 s (median; slowest 4.85 s), peak 36.63 GB;
                               4 scenes in 18.17 s
    2 x NVIDIA H100 80GB HBM3: both errors in 4.48 and 4.44 s, peak 36.63 GB;
                               8 scenes in 17.87 s, 2.03 times one

ICP is on by default and runs in one thread of the CPU while the GPU waits: 0.48 s a scene of one core's
time on good points, measured on a CPU alone, so some 5.0 s together; that was not measured. With PyTorch's
attention a scene took 6.28 s and 39.83 GB, and `--precision float32` did not finish 2 scenes in 80 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from accelerate.utils import broadcast_object_list

from hess_plugin import CalibrationConfig, VggtConfig, VggtModel
from hess_plugin.calibration.run import LOG_FILE, calibrate
from hess_plugin.datasets import Dataset, Scene, synthetic_scene
from hess_plugin.processes import process_state, wait_for_all

TINY = VggtConfig(
    img_size=28, patch_size=14, embed_dim=32, depth=2, num_heads=4, patch_embed="conv", camera_trunk_depth=1,
    camera_num_heads=4, dpt_features=8, dpt_out_channels=(4, 4, 4, 4), dpt_layers=(0, 0, 1, 1),
    enable_track=False,
)  # fmt: skip


class RenderedDataset(Dataset):
    """Synthetic scenes that were rendered before anything is timed."""

    name: ClassVar[str] = "rendered"

    def __init__(self, num_scenes: int, num_views: int, width: int, device: torch.device) -> None:
        super().__init__(image_width=width, patch_size=14)
        scenes = (
            synthetic_scene(seed, num_views, image_size=width, device=device) for seed in range(num_scenes)
        )
        self.scenes = {scene.name: scene.to("cpu") for scene in scenes}

    def scene_ids(self) -> list[str]:
        return sorted(self.scenes)

    def load(self, scene_id: str, num_views: int | None, seed: int) -> Scene:
        return self.scenes[scene_id]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=6, help="per process")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--neighbors", default="exact", choices=("exact", "faiss"))
    parser.add_argument("--no-icp", dest="icp", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see whether everything runs")
    args = parser.parse_args(arguments)

    state = process_state(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    with state.device:
        model = VggtModel(TINY if args.tiny else VggtConfig()).eval()
    config = CalibrationConfig(
        num_scenes=args.scenes * state.num_processes, num_views=args.views, precision=args.precision,
        neighbors=args.neighbors, icp=args.icp, min_fitness=0.0, inlier_radius=100.0,
    )  # fmt: skip
    dataset = RenderedDataset(config.num_scenes, args.views, args.width, state.device)
    warm_up = CalibrationConfig(**(vars(config) | {"num_scenes": state.num_processes}))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(broadcast_object_list([folder])[0])  # rank 0's, on the disk that all share
        calibrate(model, dataset, warm_up, out=place / "warm up")
        start = time.perf_counter()
        scores = calibrate(model, dataset, config, out=place / "scores")
        whole = time.perf_counter() - start
        if scores is not None:
            log = json.loads((place / "scores" / LOG_FILE).read_text())
            print(_report(log, model, args, whole))
        wait_for_all(state)
    state.destroy_process_group()


def _report(log: dict, model: VggtModel, args: argparse.Namespace, whole: float) -> str:
    """What was measured, with everything that it depends on."""
    ranks = [log["scenes"][rank :: log["processes"]] for rank in range(log["processes"])]
    seconds = [[scene["seconds"] for scene in scenes] for scenes in ranks]
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    total, count = max(map(sum, seconds)), len(log["scenes"])
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"{log['processes']} x {log['device']}, torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"transformers {version('transformers')}, Python {platform.python_version()}",
        f"VGGT, {parameters:.2f} G parameters, random weights; {args.views} views of {args.width} x "
        f"{args.width} pixels, {args.precision}, neighbors {args.neighbors}, "
        f"ICP {'on' if args.icp else 'off'}",
    ]
    for rank, scenes in enumerate(ranks):
        peak = max(scene["peak_memory"] for scene in scenes) / 1e9
        lines.append(
            f"rank {rank}: {len(scenes)} scenes, both errors in {statistics.median(seconds[rank]):.2f} s "
            f"(median; slowest {max(seconds[rank]):.2f} s), peak {peak:.2f} GB"
        )
    lines.append(
        f"total: {count} scenes in {total:.2f} s = {total / count:.2f} s per scene; {whole:.1f} s with the "
        "fingerprint of the weights and all files"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
