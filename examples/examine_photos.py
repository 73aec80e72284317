"""How well a model reconstructs photo sets with known cameras and depth, and what that hangs on.

    python examples/examine_photos.py hess_plugin/assets/hololens_office
    python examples/examine_photos.py FOLDER FOLDER --model runs/tiny/export --widths 112 168

All photos of a set are used. A row is the mean over `--firsts` photos put first in turn, spread over the
set, since the first camera is the frame of all, or over rooms; with the lowest and highest AUC@30. Errors
are those of the examination in training (`tiny_vggt_recipe.py`): 1 is the mean distance of the points from
the first camera. Points come from the point head, from depth and predicted cameras, and from depth and true
cameras; their errors are medians. Scale is what the predicted distances between cameras are to be multiplied
by, focal the median of true over predicted focal lengths, in the width: 1 is right for both. The last rows of
a set are of procedural rooms photographed by its cameras (`rooms_for_cameras.py`), for what is due to where
these stand, and what fine detail (`solid_texture.py`) and no colours cost there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rooms_for_cameras import room_for_cameras
from solid_texture import carve
from tiny_vggt_recipe import normalised_truth
from torch import Tensor
from tqdm import tqdm

from hess_plugin.datasets import Scene, load_scene
from hess_plugin.evaluation.mvs import aligned_point_error
from hess_plugin.evaluation.pose import align_cameras, ate, auc, pair_errors
from hess_plugin.geometry.cameras import unproject_depth
from hess_plugin.loading import EMBEDDED_MODEL
from hess_plugin.models import VggtModel
from hess_plugin.tables import count_of, format_table

ROOMS = 8
VOXEL, STRENGTH = 0.002, 0.8  # of the fine detail; a pixel covers some 0.009, 1 is the mean distance
HEADINGS = ("photos", "size", "change", "AUC@30", "lowest", "highest", "ATE")
HEADINGS += ("point head", "depth", "true cameras", "scale", "focal")


def _balance(images: Tensor) -> Tensor:
    """Each photo's channels by factors of their own, 10 % of standard deviation; the same every time."""
    noise = torch.randn(len(images), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return (images * (0.1 * noise).exp()).clamp(0, 1)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {  # of photos [V, 3, height, width] in [0, 1]
    "none": lambda images: images,
    "grey": lambda images: images.mean(1, keepdim=True).repeat(1, 3, 1, 1),
    "half the colour": lambda images: (images + images.mean(1, keepdim=True)) / 2,
    "0.6 times the contrast": lambda images: images.mean() + 0.6 * (images - images.mean()),
    "brighter (power 0.6)": lambda images: images**0.6,
    "darker (power 1.5)": lambda images: images**1.5,
    "blurred": lambda images: F.avg_pool2d(images, 3, 1, 1, count_include_pad=False),
    "white balances": _balance,
}


def _with_detail(room: Scene) -> Tensor:
    """Its photos, all surfaces with the same fine detail."""
    return carve(room.images[None], normalised_truth(room).points / VOXEL, STRENGTH)[0]


ROOM_CHANGES: dict[str, Callable[[Scene], Tensor]] = {  # likewise, of procedural rooms
    "": lambda room: room.images,
    ", grey": lambda room: CHANGES["grey"](room.images),
    ", detailed": _with_detail,
    ", detailed, grey": lambda room: CHANGES["grey"](_with_detail(room)),
}


@torch.inference_mode()
def measure(model: VggtModel, scene: Scene) -> list[float]:
    """AUC@30, ATE, the point errors from the three sources, scale and focal."""
    truth, output = normalised_truth(scene), model(scene.images)
    assert output.extrinsics is not None
    assert output.intrinsics is not None
    cameras, depth = output.extrinsics[0], output.depth[0, ..., 0]
    sources = (
        output.world_points[0],
        unproject_depth(depth, cameras, output.intrinsics[0]),
        unproject_depth(depth, truth.extrinsics[0], truth.intrinsics[0]),
    )
    errors = [aligned_point_error(points, truth.points[0], truth.depth[0] > 0) for points in sources]
    pose = pair_errors(cameras, truth.extrinsics[0]).pose
    scale = align_cameras(cameras, truth.extrinsics[0]).scale.item()
    focal = (truth.intrinsics[0] / output.intrinsics[0])[:, 0, 0].median().item()
    return [auc(pose, 30), ate(cameras, truth.extrinsics[0]), *errors, scale, focal]


def each_first(scene: Scene, count: int) -> Iterator[Scene]:
    """The scene with other photos first, evenly spread over it; the others keep their order."""
    views = len(scene.images)
    for k in range(min(count, views)):
        first = k * views // min(count, views)
        yield scene.select([first, *(view for view in range(views) if view != first)])


def versions_of(scene: Scene, firsts: int) -> Iterator[tuple[str, Iterable[Scene]]]:
    """Each row's name and the scenes it is the mean of: `CHANGES`, then rooms seen by the same cameras."""
    for name, change in CHANGES.items():
        yield name, each_first(replace(scene, images=change(scene.images)), firsts)
    rooms = [room_for_cameras(scene, seed) for seed in range(ROOMS)]
    for name, look in ROOM_CHANGES.items():
        yield f"{ROOMS} rooms{name}", [replace(room, images=look(room)) for room in rooms]


def rows_of(model: VggtModel, scene: Scene, firsts: int) -> Iterator[list[str]]:
    """The rows of one photo set."""
    size, versions = "{} x {}".format(*scene.images.shape[-2:]), versions_of(scene, firsts)
    total = len(CHANGES) + len(ROOM_CHANGES)
    bar = tqdm(versions, f"{scene.name}, {size}", total, unit="row", disable=None)
    for name, others in bar:
        marks = torch.tensor([measure(model, other.to(model.device)) for other in others])
        low, high = marks[:, 0].aminmax()
        mean = marks.mean(0).tolist()
        numbers = (mean[0], float(low), float(high), *mean[1:])
        yield [scene.name, size, name, *(f"{number:.3f}" for number in numbers)]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, nargs="+", help="folders with a cameras.json")
    parser.add_argument("--model", default=str(EMBEDDED_MODEL), help="folder of a checkpoint")
    parser.add_argument("--widths", type=int, nargs="+", help="of the photos, pixels (default: the model's)")
    parser.add_argument("--firsts", type=int, default=4, help="photos put first in turn")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = VggtModel.from_pretrained(options.model, dtype=torch.float32).to(device).eval()
    rows: list[list[str]] = []
    for folder in options.photos:
        for width in options.widths or [model.config.img_size]:
            rows += rows_of(model, load_scene(folder, width, model.config.patch_size), options.firsts)
    print(f"{device}, torch {torch.__version__}, {options.model}, {count_of(options.firsts, 'first photo')}")
    print(format_table(HEADINGS, rows))


if __name__ == "__main__":
    main()
