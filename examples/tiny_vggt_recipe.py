"""What `train_tiny_vggt.py` trains: the model, the lessons and their order, the loss, and the examination."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scene_looks import change_look, expose_each, shade_each
from torch import Tensor, nn

from hess_plugin.datasets import Scene, load_scene, synthetic_scene
from hess_plugin.datasets.camera_paths import CameraPath
from hess_plugin.datasets.interior import between
from hess_plugin.datasets.synthetic import (
    SceneBatch,
    SceneNumbers,
    SceneSettings,
    draw_numbers,
    render_scenes,
)
from hess_plugin.evaluation.mvs import aligned_point_error
from hess_plugin.evaluation.pose import ate, auc, pair_errors
from hess_plugin.geometry.cameras import (
    encode_pose,
    invert_rigid,
    quaternion_to_rotation,
    unproject_depth,
)
from hess_plugin.models.configuration import VggtConfig
from hess_plugin.models.vggt import NUM_SPECIAL_TOKENS, VggtModel

VIEW_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24)  # all divide the views per step, so that most shapes stay the same
EXAMINED_VIEWS = 16


@dataclass(frozen=True)
class Recipe:
    """Sizes of a training; the defaults are for one large GPU, `toy()` for a test on a CPU."""

    # Each as often as it stands here; the first is examined.
    image_sizes: tuple[tuple[int, int], ...] = ((112, 112), (72, 112), (72, 112), (72, 112))
    views_per_step: int = 672  # per process; of a step on an H100 or H200, kernels are some 80 %
    dense_views_per_step: int = 224  # of these, how many the dense heads see; the camera head sees all
    path_kinds: tuple[float, float, float] = (0.15, 0.1, 0.75)  # shares of arcs, walks and visits
    furnished: float = 0.8  # share of walks and visits through rooms that are furnished from wall to wall
    # Radians, of arcs and of other paths: photos cut to one object, and those of rooms, which overlap little.
    fields_of_view: tuple[tuple[float, float], tuple[float, float]] = ((0.45, 1.4), (0.75, 1.4))
    ramp: float = 0.3  # share of the training after which lessons are at full difficulty
    config: tuple[tuple[str, object], ...] = (
        ("embed_dim", 192), ("depth", 8), ("num_heads", 12),
        ("camera_trunk_depth", 1), ("camera_num_heads", 6),
        ("dpt_features", 64), ("dpt_out_channels", (32, 64, 96, 96)), ("dpt_layers", (1, 3, 5, 7)),
    )  # fmt: skip

    @classmethod
    def toy(cls) -> Recipe:
        """Small enough for a few steps per second on one CPU core."""
        small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "camera_trunk_depth": 1, "camera_num_heads": 2}
        dense = {"dpt_features": 8, "dpt_out_channels": (8, 8, 8, 8), "dpt_layers": (0, 0, 1, 1)}
        return cls(((32, 32), (24, 32)), 24, 8, config=tuple((small | dense).items()))

    def build_model(self) -> VggtModel:
        """A model with fresh weights."""
        fixed = {"patch_size": 8, "img_size": 112, "patch_embed": "conv"}
        return VggtModel(VggtConfig(enable_track=False, layer_scale_init=0.1, **fixed, **dict(self.config)))

    def lesson(self, progress: float, step: int) -> tuple[int, tuple[int, int], tuple[float, float]]:
        """Views per scene, image size, and range of the arc's span in radians; the same in all processes.

        Training starts with few views close together, where matching is easy to discover, and ends with the
        scenes that `synthetic_scene` shows.
        """
        ramp = min(1.0, progress / self.ramp) if self.ramp else 1.0
        most = 4 * 6**ramp
        counts = [count for count in VIEW_COUNTS if count <= most and self.views_per_step % count == 0]
        chance = random.Random(step)
        num_views = chance.choices(counts, weights=counts)[0]  # many views are what is hard
        return num_views, chance.choice(self.image_sizes), (0.3 + 0.3 * ramp, 1.0 + 5.0 * ramp)


class Batch(NamedTuple):
    """Photos and what is to be predicted, in the frame of each scene's first camera and in its own unit."""

    images: Tensor  # [B, V, 3, height, width]
    extrinsics: Tensor  # [B, V, 3, 4], world to camera
    intrinsics: Tensor  # [B, V, 3, 3]
    points: Tensor  # [B, V, height, width, 3]
    depth: Tensor  # [B, V, height, width], 0 = unknown


def make_batch(
    numbers: SceneNumbers,
    image_size: tuple[int, int],
    settings: SceneSettings,
    generator: torch.Generator,
) -> Batch:
    """Render scenes, with their truth as `normalise` puts it and photos as cameras take them."""
    batch = normalise(render_scenes(numbers, image_size, settings))
    images = change_look(batch.images, batch.points, batch.depth > 0, generator)
    images = shade_each(expose_each(images, generator), generator)
    chance = torch.rand(2, len(images), 1, 1, 1, 1, generator=generator, device=images.device)
    # Rays have no width: edges of procedural photos are sharper than those of scaled real ones.
    soft = F.avg_pool2d(images.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False)
    images = images.lerp(soft.view_as(images), 0.8 * chance[0])
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return batch._replace(images=(images + 0.05 * chance[1] ** 2 * noise).clamp(0, 1))


def normalise(scenes: SceneBatch) -> Batch:
    """Ground truth in the first camera's frame, with 1 for the mean distance of points from it."""
    to_first = invert_rigid(scenes.extrinsics[:, :1])
    rotation = scenes.extrinsics[..., :3] @ to_first[..., :3]
    translation = scenes.extrinsics[..., :3] @ to_first[..., 3:] + scenes.extrinsics[..., 3:]
    extrinsics = torch.cat([rotation, translation], -1)
    points = unproject_depth(scenes.depth, extrinsics, scenes.intrinsics)
    known = scenes.depth > 0
    total = (points.norm(dim=-1) * known).sum((1, 2, 3))
    scale = (total / known.sum((1, 2, 3)).clamp(min=1)).clamp(min=1e-3)[:, None, None, None]
    extrinsics = torch.cat([rotation, translation / scale], -1)
    points, depth = points / scale[..., None], scenes.depth / scale
    return Batch(scenes.images, extrinsics, scenes.intrinsics, points, depth)


def normalised_truth(scene: Scene) -> Batch:
    """A batch of one scene with known cameras and depth."""
    known = (scene.images, scene.extrinsics, scene.intrinsics, scene.depth)
    return normalise(SceneBatch(*(tensor[None] for tensor in known)))


def draw_lesson(
    recipe: Recipe, progress: float, step: int, generator: torch.Generator
) -> tuple[tuple[SceneNumbers, tuple[int, int], SceneSettings, torch.Generator], Tensor]:
    """The arguments of `make_batch` for one step, and the views that the dense heads see (flat over B·V)."""
    num_views, size, (low, high) = recipe.lesson(progress, step)
    num_scenes, device = recipe.views_per_step // num_views, generator.device
    numbers = draw_numbers(num_scenes, num_views, generator)
    span, kind, furnished, field = torch.rand(4, num_scenes, generator=generator, device=device)
    arcs, walks, _ = recipe.path_kinds
    path_kind = (kind > arcs).long() + (kind > arcs + walks)  # nothing is copied: the host runs ahead
    on_arc = path_kind == CameraPath.ARC
    of_arcs, of_others = (between(field, *bounds) for bounds in recipe.fields_of_view)
    settings = SceneSettings(
        between(span, low, high),
        path_kind,
        (furnished < recipe.furnished) & ~on_arc,
        torch.where(on_arc, of_arcs, of_others),
    )
    order = torch.randperm(recipe.views_per_step, generator=generator, device=device)
    return (numbers, size, settings, generator), order[: recipe.dense_views_per_step]


class Lesson(nn.Module):
    """The model with its loss: one forward pass, so that distributed training sees a single module."""

    def __init__(self, model: VggtModel) -> None:
        super().__init__()
        self.model = model
        self.camera_loss = camera_loss

    def forward(self, batch: Batch, dense_views: Tensor) -> dict[str, Tensor]:
        """The terms of the loss and, for the eye, the errors behind them; scalars.

        Args:
            batch: see `make_batch`.
            dense_views: [n] indices into B·V of the views that the dense heads predict.
        """
        model, size = self.model, tuple(batch.images.shape[-2:])
        grid = (size[0] // model.config.patch_size, size[1] // model.config.patch_size)
        layers = model.aggregator(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):  # poses need all their digits
            poses = model.camera_head(layers[model.config.depth - 1][:, :, 0].float())
            terms = self.camera_loss(poses, encode_pose(batch.extrinsics, batch.intrinsics, size))
        patches = [layers[i].flatten(0, 1)[dense_views, NUM_SPECIAL_TOKENS:] for i in model.config.dpt_layers]
        points, points_conf = model.point_head(patches, grid, size)
        depth, depth_conf = model.depth_head(patches, grid, size)
        true_points, true_depth = (x.flatten(0, 1)[dense_views] for x in (batch.points, batch.depth))
        known = true_depth > 0
        point_distance = (points - true_points).norm(dim=-1)
        depth_distance = (depth.squeeze(-1) - true_depth).abs()
        terms["points"], terms["point_error"] = confident_distance(point_distance, points_conf, known)
        terms["depth"], terms["depth_error"] = confident_distance(depth_distance, depth_conf, known)
        terms["loss"] = 5 * terms["camera"] + 3 * terms["points"] + terms["depth"]
        return terms


def camera_loss(poses: list[Tensor], truth: Tensor) -> dict[str, Tensor]:
    """Error of poses [B, V, 9] and of pairs of them, summed over refinements with weight 0.6^k.

    The last refinement has k = 0. A quaternion and its negative are one rotation, so the nearer sign is used.
    """
    total, refinement = truth.new_zeros(()), {}
    for k, pose in enumerate(reversed(poses)):
        sign = torch.where((pose[..., 3:7] * truth[..., 3:7]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        refinement = {
            "translation": (pose[..., :3] - truth[..., :3]).abs().mean(),
            "quaternion": (pose[..., 3:7] - sign * truth[..., 3:7]).abs().mean(),
            "fov": (pose[..., 7:] - truth[..., 7:]).abs().mean(),
            "pairs": pair_error(pose, truth),
        }
        error = refinement["translation"] + refinement["quaternion"] + 0.5 * refinement["fov"]
        total = total + 0.6**k * (error + 0.3 * refinement["pairs"])
    return {"camera": total} | {name: value.detach() for name, value in refinement.items()}


def pair_error(pose: Tensor, truth: Tensor) -> Tensor:
    """Mean error of the pose of one camera seen from another, over all pairs; what AUC is about.

    Rotations count by the chord of their angle in radians, positions by distance over true distance plus 0.1:
    errors of the first camera's frame hide how two neighbours stand to each other.
    """
    rotation, position = _seen_from_others(pose)
    true_rotation, true_position = _seen_from_others(truth)
    chord = _length((rotation - true_rotation).flatten(-2)) / math.sqrt(2)
    error = chord + _length(position - true_position) / (_length(true_position) + 0.1)
    others = ~torch.eye(pose.shape[1], dtype=torch.bool, device=pose.device)
    return (error * others).sum() / (len(pose) * others.sum()).clamp(min=1)


def _seen_from_others(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [B, V, V, 3, 3] and position [B, V, V, 3] of camera j in the frame of camera i."""
    to_camera = quaternion_to_rotation(pose[..., 3:7] + 1e-6)  # of fresh weights, quaternions may be 0
    translation = pose[..., :3]
    center = -(to_camera * translation[..., None]).sum(-2)
    one = to_camera[:, :, None]
    return one @ to_camera[:, None].mT, (one * center[:, None, :, None]).sum(-1) + translation[:, :, None]


def _length(vector: Tensor) -> Tensor:
    """Lengths of vectors, with finite gradients at 0."""
    return vector.square().sum(-1).clamp(min=1e-8).sqrt()


def confident_distance(distance: Tensor, confidence: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """A loss that teaches distance and confidence, and the mean distance; both over known pixels.

    A known pixel costs `distance · confidence - 0.2 log confidence`, least at a confidence of 0.2 / distance
    (or 1, the minimum). An unknown one, where photos show nothing, costs `0.2 log confidence`: it is to be 1.
    """
    count = known.sum().clamp(min=1)
    reward = 0.2 * confidence.log()
    loss = torch.where(known, distance * confidence - reward, reward).sum() / count
    return loss, (torch.where(known, distance, 0.0).sum() / count).detach()


def examine(
    model: VggtModel, image_size: tuple[int, int], num_scenes: int, folders: Sequence[Path] = ()
) -> dict[str, dict[str, float]]:
    """Marks of the held-out scenes (seeds 0, 1, ...) together, and of each scene in a folder by its name.

    The first quarter of the held-out scenes is marked again on walks and visits, where there is a room.
    """
    device, quarter = next(model.parameters()).device, math.ceil(num_scenes / 4)
    paths = {
        "held_out": (CameraPath.ARC, num_scenes),
        "walks": (CameraPath.WALK, quarter),
        "visits": (CameraPath.VISIT, quarter),
    }
    marks = {}
    for name, (path_kind, count) in paths.items():
        options = {"image_size": image_size, "device": device, "path_kind": path_kind}
        marks[name] = mark(model, [synthetic_scene(s, EXAMINED_VIEWS, **options) for s in range(count)])
    for folder in folders:
        scene = load_scene(folder, image_size[1], model.config.patch_size, EXAMINED_VIEWS)
        marks[scene.name] = mark(model, [scene.to(device)])
    return marks


@torch.no_grad()
def mark(model: VggtModel, scenes: Sequence[Scene]) -> dict[str, float]:
    """AUC@30 over the pairs of views, and means of ATE and point error in units of the normalised scenes."""
    errors, drifts, distances = [], [], []
    for scene in scenes:
        batch = normalised_truth(scene)
        output = model(scene.images)
        predicted, truth = output.extrinsics[0], batch.extrinsics[0]
        errors.append(pair_errors(predicted, truth).pose)
        drifts.append(ate(predicted, truth))
        distances.append(aligned_point_error(output.world_points[0], batch.points[0], batch.depth[0] > 0))
    mean_drift, mean_distance = (sum(values) / len(scenes) for values in (drifts, distances))
    return {"auc_30": auc(torch.cat(errors), 30), "ate": mean_drift, "point_error": mean_distance}
