"""Command-line options that several commands share; nothing heavy is imported for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

MODEL = ("model", "model_class")
SCENES = ("dataset", "root", "image_width")
DATASET = ("subset", "exclude", "categories", "min_quality", "with_background", "scans", "light")


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the defaults of the others live where they are used."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def add_model_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """What is run, and where; `default` says which model is taken where none is named."""
    add = parser.add_argument
    about = "folder or repository of a checkpoint" + (f" (default: {default})" if default else "")
    add("--model", required=default is None, help=about)
    add("--model-class", metavar="MODULE:CLASS", help="its class (default: the native VGGT or π³)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: each process's GPU, else cpu)")


def add_scene_options(
    parser: argparse.ArgumentParser, num_scenes: str, num_views: str, required: bool = True
) -> None:
    """Which scenes are drawn from which dataset; `num_scenes` and `num_views` say the defaults."""
    add = parser.add_argument_group("scenes").add_argument
    add("--dataset", required=required, help="co3d, dtu, folder or synthetic")
    add("--root", type=Path, metavar="FOLDER", help="of the dataset (synthetic has none)")
    add("--subset", help="co3d: set list, with :val or :test for that split (default: manyview_dev)")
    add("--exclude", metavar="SUBSET", help="co3d: without the sequences of this one")
    add("--categories", metavar="NAMES", help="co3d: such as apple,bench (default: all)")
    add("--min-quality", type=float, help="co3d: sequences must score above (default: 0.5)")
    keep = "co3d: also depth outside the object"
    add("--with-background", action="store_true", default=None, help=keep)
    add("--scans", help="dtu: such as 1,4,9, or training, validation, test (default: all)")
    add("--light", type=int, metavar="N", help="dtu, training tree: 0 to 6 (default: 3)")
    add("--num-scenes", type=int, metavar="N", help=f"at most so many, drawn by seed (default: {num_scenes})")
    add("--num-views", type=int, metavar="N", help=f"drawn from each scene (default: {num_views})")
    add("--image-width", type=int, metavar="PIXELS", help="of the photos (default: the model's own, or 518)")
    add("--seed", type=int, metavar="N", help="of all draws (default: 0)")
