"""Run a model on a scene and keep plain tensors: what metrics and plots read, without ever seeing a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..backbones import find_backbone
from ..datasets.scene import Scene

if TYPE_CHECKING:
    from ..patch import HeSSHandle


@dataclass(frozen=True)
class Prediction:
    """A reconstruction of one scene, float32 on the CPU; world frame and scale are the model's own.

    Convention: OpenCV cameras, `x_camera = R x_world + t` with `extrinsics = [R | t]`.
    """

    scene: str  # name of the scene
    extrinsics: Tensor  # [V, 3, 4], world to camera
    intrinsics: Tensor  # [V, 3, 3], pixels; see `fit_intrinsics`
    points: Tensor  # [V, height, width, 3], world
    depth: Tensor  # [V, height, width], z in the camera
    confidence: Tensor  # [V, height, width], higher is better; comparable within one model only
    seconds: float | None  # wall time of the forward pass, heads included; None: not known
    density: float  # measured share of attended blocks over all global layers; 1 without a handle
    peak_memory: int = 0  # bytes on the GPU during the forward pass, weights included; 0 on a CPU


def predict(
    model: nn.Module, scene: Scene, handle: HeSSHandle | None = None, keep_on_device: bool = False
) -> Prediction:
    """One forward pass over all views of a scene, under bfloat16 autocast on CUDA.

    Args:
        model: of a known family, in eval mode; the images go to the device of its parameters.
        scene: only `images` and `name` are read.
        handle: of the sparse attention applied to the model, for its measured density; None means dense.
        keep_on_device: leave the prediction where the model is, for metrics there.
    """
    backbone = find_backbone(model)
    device = next(model.parameters()).device
    images = scene.images[None].to(device)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        _wait(device)
        start = time.perf_counter()
        outputs = backbone.predict(model, images)
        _wait(device)
        seconds = time.perf_counter() - start
    peak_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    result = backbone.reconstruct(outputs)
    extrinsics, points, depth, confidence = (
        value[0].float().to(device if keep_on_device else "cpu")
        for value in (result.extrinsics, result.points, result.depth, result.confidence)
    )
    density = 1.0 if handle is None else float(handle.stats.density.mean())
    intrinsics = fit_intrinsics(points, extrinsics)
    return Prediction(
        scene.name, extrinsics, intrinsics, points, depth, confidence, seconds, density, peak_memory
    )


def fit_intrinsics(points: Tensor, extrinsics: Tensor) -> Tensor:
    """Pinholes [V, 3, 3] with square pixels and a central principal point that best explain point maps.

    Not every family predicts intrinsics, so all are treated alike: per view, the focal length f with the
    least sum of squares of (u - cx) z - f x and (v - cy) z - f y over the pixels, in closed form.

    Args:
        points: [V, height, width, 3] world points; those behind their camera do not count.
        extrinsics: [V, 3, 4] world to camera.
    """
    num_views, height, width, _ = points.shape
    columns, rows = (torch.arange(n, device=points.device) for n in (width, height))
    center = points.new_tensor([(width - 1) / 2, (height - 1) / 2])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    local = points.flatten(1, 2) @ extrinsics[..., :3].mT + extrinsics[:, None, :, 3]  # [V, pixels, 3]
    side, z = local[..., :2], local[..., 2:].clamp_min(0)
    ray = (grid - center).flatten(0, 1) * z
    focal = (side * ray).sum((1, 2)) / (side * side * (z > 0)).sum((1, 2)).clamp_min(1e-12)
    intrinsics = torch.eye(3, device=points.device).repeat(num_views, 1, 1)
    intrinsics[:, :2, 2] = center
    # A broken reconstruction can fit a mirrored or vanishing camera; none is taken to see more than 127°.
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal.clamp_min(max(height, width) / 4)
    return intrinsics


def _wait(device: torch.device) -> None:
    """Let queued GPU work end, so that the clock measures it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
