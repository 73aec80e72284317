"""The rule by which the weights and images of the golden files were drawn, and how they are compared."""

from __future__ import annotations

import ast
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = (
    *("pos_embed", "cls_token", "register_tokens", "register_token"),
    *("camera_token", "mask_token", "empty_pose_tokens"),
)


def build_filled(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Any:
    """A model in eval mode with the golden files' weights, without the time to draw others first."""
    with no_init_weights():
        model = model_class(config)
    return fill_weights(model).eval()


def fill_weights(model: nn.Module) -> Any:
    """Set every parameter to the values of the golden files: drawn by its name, so in no particular order."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = zlib.crc32(name.encode())
            z = np.random.RandomState(seed).standard_normal(tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(_scaled(name, z)))
    return model


def _scaled(name: str, z: np.ndarray) -> np.ndarray:
    if z.ndim >= 2 and name.rpartition(".")[2] not in TOKENS:
        return z / np.float32(np.sqrt(np.prod(z.shape[1:])))
    if z.ndim >= 2:
        return np.float32(0.1) * z
    if name.endswith((".weight", ".gamma")):
        return 1 + np.float32(0.1) * z
    return np.float32(0.02) * z


def golden_keys(variant: str) -> dict[str, list[int]]:
    """Shape of every entry of the original's state dict, in its order."""
    return json.loads((GOLDEN / f"{variant}_state_dict.json").read_text())


def golden_tensors(file: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The stored tensors of a golden file and its metadata."""
    with safe_open(GOLDEN / f"{file}.safetensors", "pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}, stored.metadata()  # noqa: SIM118


def golden_images(metadata: dict[str, str]) -> Tensor:
    """The input of a golden file, float32."""
    draw = np.random.RandomState(int(metadata["images_seed"])).uniform
    return torch.from_numpy(draw(0, 1, ast.literal_eval(metadata["images_shape"])).astype(np.float32))


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """‖ours - golden‖ / ‖golden‖, computed in float64."""
    return ((ours.double() - golden.double()).norm() / golden.double().norm()).item()


def thinned(name: str, value: Tensor, metadata: dict[str, str]) -> Tensor:
    """The part of one of our outputs that a golden file stores under `name`."""
    if name.startswith("inter."):
        return value[:, :: int(metadata["inter_token_stride"]), :32]
    if name.startswith("out.") and value.ndim >= 4 and name != "out.camera_poses":
        stride = int(metadata["dense_outputs_pixel_stride"])
        return value[:, :, ::stride, ::stride]
    return value
