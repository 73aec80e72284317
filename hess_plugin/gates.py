"""Gradients of the two errors by a gate on each head's output: what head pruning ranks heads by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InputError, input_errors
from .files import write_atomic
from .scores_io import CONFIG_FILE, ERRORS, ScoresInfo, sorted_header, traces_sha256

GATES_FILE = "head_gates.safetensors"


def gate_name(error: str) -> str:
    """Name of the gate gradients of an error among what a scene's calibration gives."""
    return f"{error}.gate"


@dataclass(frozen=True, eq=False, repr=False)
class HeadGates:
    """dE/dg of every head on every calibration scene, where g = 1 multiplies the head's output.

    By the chain rule it is the product of the head's output with the error's gradient there, summed over
    tokens and channels. Errors of a scene are those of calibration, in squared units of the normalised scene.

    Raises ValueError unless both errors are there, finite, and [N, L, H] as `info` says.
    """

    gradients: Mapping[str, Tensor]  # [N, L, H] float64 on the CPU by error, signed
    info: ScoresInfo  # of the scores that were calibrated with them

    def __post_init__(self) -> None:
        shape = (len(self.info.scene_ids), self.info.num_layers, self.info.num_heads)
        if set(self.gradients) != set(ERRORS):
            raise ValueError(f"gradients must be of {', '.join(ERRORS)}, got {', '.join(self.gradients)}.")
        for error, gradient in self.gradients.items():
            if tuple(gradient.shape) != shape or not bool(torch.isfinite(gradient).all()):
                raise ValueError(
                    f"gate gradients of the {error} error must be finite and [scenes, layers, heads] = "
                    f"{list(shape)}, got {list(gradient.shape)}; calibrate again with --gates."
                )

    def of_loss(self, camera_weight: float | None = None) -> Tensor:
        """Gradients [N, L, H] of one loss, λ E_camera + (1 - λ) E_points; None takes the recommended λ.

        Both errors are in the same units, and a gradient is linear, so the two mix as the errors would have.
        """
        share = self.info.camera_weight if camera_weight is None else camera_weight
        return share * self.gradients["camera"] + (1 - share) * self.gradients["points"]

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the gradients."""
        return traces_sha256(self.gradients)

    def save(self, folder: Path) -> None:
        """Write `head_gates.safetensors` into a folder, made if needed; equal gates are equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {error: gradient.contiguous() for error, gradient in self.gradients.items()}
        metadata = {"format": "pt", CONFIG_FILE: self.info.to_json()}
        write_atomic(folder / GATES_FILE, sorted_header(safetensors.torch.save(tensors, metadata)))

    @classmethod
    def beside(cls, folder: Path) -> Self | None:
        """The gates in a folder of scores, None without any; InputError as of `load`."""
        return cls.load(folder) if (folder / GATES_FILE).is_file() else None

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the gates of a folder.

        Raises:
            InputError: there are none, or the file is damaged or of a newer format.
        """
        path = folder / GATES_FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {GATES_FILE}; measure it with hess calibrate --gates.")
        with (
            input_errors(SafetensorError, ValueError, KeyError, TypeError, prefix=f"cannot read {path}: "),
            safe_open(path, framework="pt") as file,
        ):
            info = ScoresInfo.from_dict(json.loads(file.metadata()[CONFIG_FILE]))
            return cls({name: file.get_tensor(name) for name in file.keys()}, info)  # noqa: SIM118
