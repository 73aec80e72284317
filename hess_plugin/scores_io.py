"""The two files of a sidecar: what they hold; written whole, and read completely or refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import Checked, Projection, ordered_projections
from .errors import input_errors
from .files import write_atomic

FORMAT_VERSION = 1
CONFIG_FILE, SCORES_FILE = "hess_config.json", "hess_scores.safetensors"
ERRORS = ("camera", "points")  # e_cam of Eq. 2 and e_pc of Eq. 4
DIGEST = "traces_sha256"  # key in the metadata of SCORES_FILE


def trace_name(error: str, projection: Projection) -> str:
    """Name of the traces of an error in W_Q, W_K or W_V: "camera", "camera.key", "camera.value", ..."""
    return error if projection == "query" else f"{error}.{projection}"


def trace_names(projections: Sequence[Projection]) -> tuple[str, ...]:
    """Names of all traces that scores of these projections have."""
    return tuple(trace_name(error, projection) for projection in projections for error in ERRORS)


def traces_sha256(scene_traces: Mapping[str, Tensor]) -> str:
    """Fingerprint of traces [N, L, H] float64 on the CPU: their names and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(scene_traces):
        digest.update(name.encode())
        digest.update(scene_traces[name].contiguous().numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def _software_versions() -> dict[str, str]:
    packages = ("hess-plugin", "torch", "transformers")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


@dataclass(frozen=True, kw_only=True)
class ScoresInfo(Checked):
    """Where scores come from and which models they fit: the fields of `hess_config.json`."""

    backbone: str  # name of the model family
    num_layers: int  # L: global attentions
    num_heads: int  # H
    head_dim: int  # D
    dataset: str  # calibration set
    scene_ids: tuple[str, ...]  # N calibration scenes, in the order of the traces
    view_ids: tuple[tuple[str, ...], ...]  # of each scene, in the order in which the model saw them
    num_views: int  # views per scene
    seed: int
    camera_weight: float  # λ of Eq. 9 recommended to users
    projections: tuple[Projection, ...] = ("query",)  # whose traces there are
    dataset_settings: dict[str, Any] = field(default_factory=dict)  # all that decides scenes, views, pixels
    skipped: dict[str, str] = field(default_factory=dict)  # scene to the reason why it has no traces
    calibration: dict[str, Any] = field(default_factory=dict)  # settings of the two errors
    base_model: str | None = None  # repository of the calibrated checkpoint, or name of its folder
    base_revision: str | None = None  # its commit
    weights_sha256: str | None = None  # fingerprint of its global attentions
    versions: dict[str, str] = field(default_factory=_software_versions)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self._positive_int("num_layers", "num_heads", "head_dim", "num_views", "format_version")
        self._positive_int("seed", at_least=0)
        self._in_unit_interval("camera_weight")
        kinds: dict[str, Any] = {"backbone": str, "dataset": str, "camera_weight": int | float}
        kinds |= dict.fromkeys(("base_model", "base_revision", "weights_sha256"), str | None)
        kinds |= dict.fromkeys(("dataset_settings", "skipped", "calibration", "versions"), dict)
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or value == "":
                raise ValueError(f"{name} has an impossible value: {value!r}.")
            if kind is dict:  # as it will be read from the file: a copy, with lists for tuples
                object.__setattr__(self, name, _as_json(name, value))
        if not all(isinstance(reason, str) for reason in self.skipped.values()):
            raise ValueError(f"skipped must give a reason, as text, for each scene, got {self.skipped!r}.")
        object.__setattr__(self, "projections", ordered_projections(self.projections))
        object.__setattr__(self, "scene_ids", _different_strings("scene_ids", self.scene_ids))
        self._check_view_ids()

    def _check_view_ids(self) -> None:
        rows = self.view_ids
        if not isinstance(rows, tuple | list) or len(rows) != len(self.scene_ids):
            raise ValueError(f"view_ids must be one list for each of {len(self.scene_ids)} scene_ids.")
        named = dict(zip(self.scene_ids, rows, strict=True))
        rows = tuple(_different_strings(f"view_ids of {scene!r}", row) for scene, row in named.items())
        for scene, row in zip(self.scene_ids, rows, strict=True):
            if len(row) != self.num_views:
                raise ValueError(
                    f"view_ids of {scene!r} are {len(row)}, num_views is {self.num_views}; they must agree."
                )
        object.__setattr__(self, "view_ids", rows)

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

    def check_fit(
        self, *, backbone: str, num_layers: int, num_heads: int, head_dim: int, weights_sha256: str | None
    ) -> None:
        """Refuse a model that these scores cannot belong to; warn when its weights are not those calibrated.

        Raises:
            ValueError: family, layers, heads or head dim differ; names both sides.
        """
        ours = f"{self.backbone} with {self.num_layers} layers x {self.num_heads} heads of {self.head_dim}"
        theirs = f"{backbone} with {num_layers} layers x {num_heads} heads of {head_dim}"
        if ours != theirs:
            raise ValueError(
                f"scores are for {ours}, this model is {theirs} (global attention); "
                f"they were calibrated on {self.base_model or 'another model'}."
            )
        if weights_sha256 and self.weights_sha256 and weights_sha256 != self.weights_sha256:
            warnings.warn(
                f"the global attention of this model (weights {weights_sha256[:12]}) is not the one that the "
                f"scores were calibrated on ({self.base_model or 'unnamed'}, weights "
                f"{self.weights_sha256[:12]}); calibrate this model to get scores of its own.",
                stacklevel=4,
            )

    def to_json(self) -> str:
        """The text of `hess_config.json`: a line for each field, and for each scene in `view_ids`."""
        lines = {name: _dump(value) for name, value in dataclasses.asdict(self).items()}
        lines["view_ids"] = "[\n    " + ",\n    ".join(map(_dump, self.view_ids)) + "\n  ]"
        return "{\n" + ",\n".join(f'  "{name}": {line}' for name, line in lines.items()) + "\n}\n"


def write_sidecar(folder: Path, info: ScoresInfo, scene_traces: Mapping[str, Tensor]) -> None:
    """Write both files into a folder, made if needed; their bytes follow from the arguments alone."""
    folder.mkdir(parents=True, exist_ok=True)
    text = info.to_json()
    tensors = {f"scene_trace.{name}": trace.contiguous() for name, trace in scene_traces.items()}
    tensors |= {f"fisher_trace.{name}": trace.mean(0) for name, trace in scene_traces.items()}
    # The text in the metadata makes the weights file self-describing, and ties the two files together.
    metadata = {"format": "pt", CONFIG_FILE: text, DIGEST: traces_sha256(scene_traces)}
    write_atomic(folder / SCORES_FILE, sorted_header(safetensors.torch.save(tensors, metadata)))
    write_atomic(folder / CONFIG_FILE, text.encode())


def read_sidecar(folder: Path) -> tuple[ScoresInfo, dict[str, Tensor]]:
    """The info and the scene traces by name, each [N, L, H] float64.

    Raises:
        ValueError: a file is missing, cut short, changed or of a newer format, a field is unknown, missing or
            impossible, or the two files are not of one calibration; names the file and the field.
    """
    config_path, scores_path = folder / CONFIG_FILE, folder / SCORES_FILE
    for path in (config_path, scores_path):
        if not path.is_file():
            raise ValueError(f"{path}: no such file; scores are {CONFIG_FILE} beside {SCORES_FILE}.")
    with input_errors(ValueError, prefix=f"{config_path}: "):
        info = ScoresInfo.from_dict(json.loads(config_path.read_text(encoding="utf-8")))
    with input_errors(ValueError, SafetensorError, prefix=f"{scores_path}: "):
        return info, _read_traces(scores_path, info)


def _read_traces(path: Path, info: ScoresInfo) -> dict[str, Tensor]:
    names = trace_names(info.projections)
    expected = [f"{kind}.{name}" for kind in ("fisher_trace", "scene_trace") for name in names]
    with safe_open(path, framework="pt") as file:
        found, metadata = set(file.keys()), file.metadata() or {}
        for key in (CONFIG_FILE, DIGEST):
            if key not in metadata:
                raise ValueError(f"its metadata lack {key}; write it with HeadScores.save.")
        if json.loads(metadata[CONFIG_FILE]) != json.loads(info.to_json()):
            raise ValueError(f"was written with another {CONFIG_FILE} than lies beside it.")
        if found != set(expected):
            raise ValueError(f"must hold the tensors {', '.join(expected)}, got {', '.join(sorted(found))}.")
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float64:
            raise ValueError(f"{name} must be float64, got {str(tensor.dtype).removeprefix('torch.')}.")
    traces = {name: tensors[f"scene_trace.{name}"] for name in names}
    if traces_sha256(traces) != metadata[DIGEST]:
        raise ValueError(f"its scene traces do not have the {DIGEST} of its metadata; fetch the file again.")
    for name, trace in traces.items():
        stored, mean = tensors[f"fisher_trace.{name}"], trace.mean(0)
        if stored.shape != mean.shape or not torch.allclose(stored, mean, rtol=1e-9, atol=0, equal_nan=True):
            raise ValueError(f"fisher_trace.{name} is not the mean of scene_trace.{name}.")
    return traces


def sorted_header(content: bytes) -> bytes:
    """A safetensors file with sorted header: the library writes metadata in an order drawn at random."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors start at multiples of 8 bytes
    return len(header).to_bytes(8, "little") + header + content[end:]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _as_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(_dump(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be what JSON can hold: {error}.") from error


def _different_strings(name: str, values: Any) -> tuple[str, ...]:
    given = values if isinstance(values, tuple | list) else ()
    if not given or len({value for value in given if isinstance(value, str)}) != len(given):
        raise ValueError(f"{name} must be different strings, at least one, got {values!r}.")
    return tuple(given)
