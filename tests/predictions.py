"""Predictions of a model, without one: the truth up to a similarity, whole or bent."""

from __future__ import annotations

from dataclasses import replace

import torch

from hess_plugin.backbones.base import Reconstruction
from hess_plugin.datasets.scene import Scene
from hess_plugin.geometry.cameras import camera_centers
from hess_plugin.geometry.similarity import Similarity


def quarter_turn(scale: float) -> Similarity:
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    return Similarity(torch.tensor(scale).double(), turn, torch.tensor([1.0, -2.0, 3.0]).double())


def perfect_prediction(scene: Scene, similarity: Similarity) -> Reconstruction:
    """What a model would predict that is right up to a similarity, in float64."""
    rotation = scene.extrinsics[..., :3].double() @ similarity.rotation.T
    centers = similarity.apply(camera_centers(scene.extrinsics.double()))
    extrinsics = torch.cat([rotation, -rotation @ centers[..., None]], dim=-1)
    return Reconstruction(
        extrinsics=extrinsics[None],
        points=similarity.apply(scene.world_points.double())[None],
        confidence=torch.ones(scene.mask.shape)[None],
        depth=scene.depth[None] * similarity.scale,
    )


def bent_prediction(scene: Scene, bend: float = 0.03, seed: int = 0) -> Reconstruction:
    """Smoothly bent points, noise on points and cameras, in shares of the scene's size."""
    torch.manual_seed(seed)
    perfect = perfect_prediction(scene, quarter_turn(1.7))
    size = perfect.points[0][scene.mask].std()
    moved = perfect.points + bend * size * torch.sin(3 * perfect.points.roll(1, -1) / size)
    moved += 0.1 * bend * size * torch.randn(moved.shape)
    extrinsics = perfect.extrinsics.clone()
    extrinsics[..., 3] += bend * size * torch.randn(extrinsics.shape[:-1])
    return replace(perfect, points=moved, extrinsics=extrinsics)


def with_cloud(scene: Scene, views: slice = slice(None)) -> Scene:
    """The scene with the points of some of its views as a cloud of its own, and without depth."""
    cloud = scene.world_points[views][scene.mask[views]]
    return replace(scene, cloud=cloud[torch.randperm(len(cloud))], depth=None)
