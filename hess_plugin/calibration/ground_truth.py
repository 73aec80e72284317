"""The known geometry of a scene, in the unit in which predictions are compared with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Truth
from ..datasets.scene import Scene
from ..geometry.cameras import camera_centers, unproject_depth


@dataclass(frozen=True)
class GroundTruth:
    """The known geometry of a scene, normalised.

    Convention: the first camera's centre is the origin, and the known points lie at distance 1 from it on
    average. This is VGGT's normalisation but for the turn into the first camera's axes, which no error can
    notice. It gives `inlier_radius` a unit in datasets whose own unit is arbitrary.
    """

    name: str  # of the scene, for messages
    centers: Tensor  # [V, 3] float32
    points: Tensor  # float32: [V, height, width, 3] of the pixels, or [N, 3] of the dataset's own cloud
    mask: Tensor  # bool, same shape without the 3: where `points` mean something

    @classmethod
    def of(cls, scene: Scene, truth: Truth = "depth") -> GroundTruth:
        """Normalise the cameras and the known points of a scene; ValueError where it has none."""
        if scene.extrinsics is None or (truth == "depth" and not scene.has_ground_truth):
            raise ValueError(
                f"scene {scene.name!r} lacks cameras or depth; calibration needs scenes with ground truth."
            )
        # float64, because a dataset's origin may be far away compared with the scene's size
        extrinsics = scene.extrinsics.double()
        if truth == "depth":
            depth, intrinsics = scene.depth.double(), scene.intrinsics.double()  # type: ignore[union-attr]
            points, mask = unproject_depth(depth, extrinsics, intrinsics), scene.mask
        elif scene.cloud is None:
            raise ValueError(f"scene {scene.name!r} has no cloud of its own; calibrate with truth='depth'.")
        else:
            points = scene.cloud.double()
            mask = torch.isfinite(points).all(-1)
        if not mask.any():
            raise ValueError(f"scene {scene.name!r} has no known {truth}; leave it out.")
        centers = camera_centers(extrinsics)
        points, centers = points - centers[0], centers - centers[0]
        scale = points[mask].norm(dim=-1).mean()
        return cls(scene.name, (centers / scale).float(), (points / scale).float(), mask)

    @property
    def known(self) -> Tensor:
        """The points that are known, [K, 3]."""
        return self.points[self.mask]
