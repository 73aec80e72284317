"""Head sensitivity scores: raw Fisher traces of every head, their weights, and the sidecar files.

A sidecar is `hess_config.json` beside `hess_scores.safetensors`. It keeps the traces of each calibration
scene, so that mixture, normalisation and confidence intervals are choices of whoever loads it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import _Checked
from .errors import input_errors

FORMAT_VERSION = 1
CONFIG_FILE, SCORES_FILE = "hess_config.json", "hess_scores.safetensors"
ERRORS = ("camera", "points")  # e_cam of Eq. 2 and e_pc of Eq. 4; traces are of W_Q
_TENSORS = tuple(f"{kind}.{error}" for kind in ("fisher_trace", "scene_trace") for error in ERRORS)


def _software_versions() -> dict[str, str]:
    packages = ("hess-plugin", "torch", "transformers")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@dataclass(frozen=True, kw_only=True)
class ScoresInfo(_Checked):
    """Where scores come from and which models they fit: the fields of `hess_config.json`."""

    backbone: str  # name of the model family
    num_layers: int  # L: global attentions
    num_heads: int  # H
    head_dim: int  # D
    dataset: str  # calibration set
    scene_ids: tuple[str, ...]  # N calibration scenes, in the order of the traces
    num_views: int  # views per scene
    seed: int
    camera_weight: float  # λ of Eq. 9 recommended to users
    calibration: dict[str, Any] = field(default_factory=dict)  # settings of the two errors
    base_model: str | None = None  # repository or folder of the calibrated checkpoint
    base_revision: str | None = None  # its commit
    weights_sha256: str | None = None  # fingerprint of its global attentions
    versions: dict[str, str] = field(default_factory=_software_versions)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        ids = self.scene_ids
        if isinstance(ids, str) or not ids or len({i for i in ids if isinstance(i, str)}) != len(ids):
            raise ValueError(f"scene_ids must be different strings, at least one, got {ids!r}.")
        object.__setattr__(self, "scene_ids", tuple(ids))
        self._positive_int("num_layers", "num_heads", "head_dim", "num_views", "format_version")
        self._positive_int("seed", at_least=0)
        self._in_unit_interval("camera_weight")
        kinds: dict[str, Any] = {"backbone": str, "dataset": str, "camera_weight": int | float}
        kinds |= dict.fromkeys(("base_model", "base_revision", "weights_sha256"), str | None)
        for name, kind in (kinds | dict.fromkeys(("calibration", "versions"), dict)).items():
            if not isinstance(getattr(self, name), kind) or getattr(self, name) == "":
                raise ValueError(f"{name} has an impossible value: {getattr(self, name)!r}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from parsed JSON; ValueError on a newer format, an unknown, missing or impossible field."""
        if not isinstance(values, dict):
            raise ValueError(f"must hold a JSON object, got {type(values).__name__}.")
        given = values.get("format_version")
        if isinstance(given, int) and given > FORMAT_VERSION:
            raise ValueError(
                f"format_version is {given}, this version reads up to {FORMAT_VERSION}; upgrade hess-plugin."
            )
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values]
        if missing:
            raise ValueError(f"lacks the key{'s' * (len(missing) > 1)} {', '.join(missing)}.")
        return super().from_dict(values)

    def to_json(self) -> str:
        """The text of `hess_config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """Fisher traces of every global-attention head on every calibration scene.

    Raises ValueError unless both errors have finite, non-negative traces of shape [N, L, H] as `info` says.

    Example:
        >>> info = ScoresInfo(backbone="vggt", num_layers=1, num_heads=2, head_dim=64, dataset="toy",
        ...                   scene_ids=("a",), num_views=2, seed=0, camera_weight=0.5)
        >>> traces = {"camera": torch.tensor([[[1.0, 3.0]]]), "points": torch.tensor([[[5.0, 5.0]]])}
        >>> scores = HeadScores(traces, info)
        >>> scores.weights().tolist(), scores.weights(camera_weight=1).tolist()
        ([[0.375, 0.625]], [[0.25, 0.75]])
    """

    scene_traces: Mapping[str, Tensor]  # "camera" and "points": [N, L, H] float64 on the CPU
    info: ScoresInfo

    def __post_init__(self) -> None:
        if set(self.scene_traces) != set(ERRORS):
            raise ValueError(f"scene_traces must have {ERRORS}, got {tuple(self.scene_traces)}.")
        shape = (len(self.info.scene_ids), self.info.num_layers, self.info.num_heads)
        traces = {error: self.scene_traces[error].detach().to("cpu", torch.float64) for error in ERRORS}
        for error, trace in traces.items():
            if tuple(trace.shape) != shape:
                raise ValueError(
                    f"scene_trace.{error} must be [scenes, layers, heads] = {list(shape)} by scene_ids, "
                    f"num_layers and num_heads, got {list(trace.shape)}."
                )
            bad = ~(torch.isfinite(trace) & (trace >= 0))
            if bad.any():
                scene, layer, head = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"scene_trace.{error} must be finite and >= 0, got {trace[scene, layer, head]}, "
                    f"in layer {layer}, head {head}, scene {self.info.scene_ids[scene]!r}; calibrate again."
                )
        object.__setattr__(self, "scene_traces", traces)

    def __repr__(self) -> str:
        info = self.info
        return f"HeadScores({info.backbone}, {info.num_layers} x {info.num_heads} heads, {info.dataset})"

    @property
    def fisher_trace(self) -> dict[str, Tensor]:
        """tr(F) of Eq. 5 and 6, the mean over scenes: "camera" and "points", [L, H] float64."""
        return {error: trace.mean(0) for error, trace in self.scene_traces.items()}

    def weights(self, camera_weight: float | None = None) -> Tensor:
        """HeSS (Eq. 7 to 9), [L, H] float64: each error's traces as shares of their layer, then mixed.

        Args:
            camera_weight: λ; None takes the recommended one. An error with weight 0 is not read.

        Raises:
            ValueError: a layer whose traces are all zero. An error that does not depend on a layer's queries
                is the sign of a broken calibration, which equal weights would hide.
        """
        share = self.info.camera_weight if camera_weight is None else camera_weight
        if not 0 <= share <= 1:
            raise ValueError(f"camera_weight must be in [0, 1], got {share!r}.")
        mixed = torch.zeros(self.info.num_layers, self.info.num_heads, dtype=torch.float64)
        for error, weight in zip(ERRORS, (share, 1 - share), strict=True):
            trace = self.fisher_trace[error]
            total = trace.sum(1, keepdim=True)
            if weight and not total.all():
                layer = int((total == 0).nonzero()[0, 0])
                raise ValueError(
                    f"fisher_trace.{error} of global layer {layer} is zero for every head, so its heads have "
                    "no order; calibrate again, or give this error no weight (camera_weight 0 or 1)."
                )
            mixed += weight * trace / total if weight else 0
        return mixed

    def check_fit(
        self, *, backbone: str, num_layers: int, num_heads: int, head_dim: int, weights_sha256: str | None
    ) -> None:
        """Refuse a model that these scores cannot belong to; warn when its weights are not those calibrated.

        Raises:
            ValueError: family, layers, heads or head dim differ; names both sides.
        """
        info = self.info
        ours = f"{info.backbone} with {info.num_layers} layers x {info.num_heads} heads of {info.head_dim}"
        theirs = f"{backbone} with {num_layers} layers x {num_heads} heads of {head_dim}"
        if ours != theirs:
            raise ValueError(
                f"scores are for {ours}, this model is {theirs} (global attention); "
                f"they were calibrated on {info.base_model or 'another model'}."
            )
        if weights_sha256 and info.weights_sha256 and weights_sha256 != info.weights_sha256:
            warnings.warn(
                f"the global attention of this model (weights {weights_sha256[:12]}) is not the one that the "
                f"scores were calibrated on ({info.base_model or 'unnamed'}, weights "
                f"{info.weights_sha256[:12]}); calibrate this model to get scores of its own.",
                stacklevel=3,
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the two files into a folder, made if needed; a reader never sees half a file."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.info.to_json()
        tensors = {f"scene_trace.{error}": trace.contiguous() for error, trace in self.scene_traces.items()}
        tensors |= {f"fisher_trace.{error}": trace for error, trace in self.fisher_trace.items()}
        # The text in the metadata makes the weights file self-describing, and ties the two files together.
        metadata = {"format": "pt", CONFIG_FILE: text}
        _write(folder / SCORES_FILE, safetensors.torch.save(tensors, metadata))
        _write(folder / CONFIG_FILE, text.encode())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the two files of a folder.

        Raises:
            ValueError: a file is missing, cut short or of a newer format, a field is unknown, missing or
                impossible, or the two files are not of one calibration; names the file and the field.
        """
        config_path, scores_path = Path(folder) / CONFIG_FILE, Path(folder) / SCORES_FILE
        for path in (config_path, scores_path):
            if not path.is_file():
                raise ValueError(f"{path}: no such file; scores are {CONFIG_FILE} beside {SCORES_FILE}.")
        with input_errors(ValueError, prefix=f"{config_path}: "):
            info = ScoresInfo.from_dict(json.loads(config_path.read_text(encoding="utf-8")))
        with input_errors(ValueError, SafetensorError, prefix=f"{scores_path}: "):
            tensors, written_with = _read_tensors(scores_path)
            if json.loads(written_with) != json.loads(info.to_json()):
                raise ValueError(f"was written with another {CONFIG_FILE} than lies beside it.")
            scores = cls({error: tensors[f"scene_trace.{error}"] for error in ERRORS}, info)
            for error, mean in scores.fisher_trace.items():
                stored = tensors[f"fisher_trace.{error}"]
                if stored.shape != mean.shape or not torch.allclose(stored, mean, rtol=1e-9, atol=0):
                    raise ValueError(f"fisher_trace.{error} is not the mean of scene_trace.{error}.")
        return scores


def _write(path: Path, content: bytes) -> None:
    """Write a file so that the path holds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The four tensors, and the text of the configuration that they were written with."""
    with safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata() or {}
        if names != set(_TENSORS):
            raise ValueError(f"must hold the tensors {', '.join(_TENSORS)}, got {', '.join(sorted(names))}.")
        if CONFIG_FILE not in metadata:
            raise ValueError(f"its metadata lack {CONFIG_FILE}; write it with HeadScores.save.")
        tensors = {name: file.get_tensor(name) for name in _TENSORS}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name} must be float64, got {str(tensor.dtype).removeprefix('torch.')}.")
    return tensors, metadata[CONFIG_FILE]
