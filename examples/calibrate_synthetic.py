"""Measure head sensitivity of a model on synthetic scenes and save the sidecar beside its weights.

    python examples/calibrate_synthetic.py hess_plugin/assets/tiny_vggt --scenes 40 --views 20

The scenes are held out from the training of the small model, and from its examination and the demo too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hess_plugin import CalibrationConfig, VggtModel
from hess_plugin.calibration.fisher import calibrate
from hess_plugin.datasets import synthetic_scene

FIRST_SEED = 10_000


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a VggtModel; scores go to hess/synthetic in it")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--max-points", type=int, default=20_000, help="predicted points per scene")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)

    model = VggtModel.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    config = CalibrationConfig(num_scenes=args.scenes, num_views=args.views, max_points=args.max_points)
    size = model.config.img_size
    scenes = (
        synthetic_scene(FIRST_SEED + i, args.views, image_size=size, device=args.device)
        for i in range(args.scenes)
    )
    scores = calibrate(model, scenes, config, dataset="synthetic", base_model=args.model.name)
    scores.save(args.model / "hess" / "synthetic")
    print(f"saved {args.model / 'hess' / 'synthetic'}")


if __name__ == "__main__":
    main()
