"""Head sensitivity scores: raw Fisher traces of every head, and the weights made of them.

The traces of each calibration scene are kept, so that mixture, normalisation, choice of projection and
confidence intervals are up to whoever loads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .config import NORMALIZATIONS, Normalization, Projection
from .errors import input_errors
from .scores_io import (
    CONFIG_FILE,
    ERRORS,
    FORMAT_VERSION,
    SCORES_FILE,
    ScoresInfo,
    read_sidecar,
    trace_name,
    trace_names,
    traces_sha256,
    write_sidecar,
)

if TYPE_CHECKING:
    from .upload import Pushed

__all__ = [
    "CONFIG_FILE", "ERRORS", "FORMAT_VERSION", "SCORES_FILE",
    "HeadScores", "ScoresInfo", "head_weights", "trace_name", "trace_names",
]  # fmt: skip


def head_weights(
    camera: Tensor, points: Tensor, camera_weight: float, normalization: Normalization = "sum"
) -> Tensor:
    """HeSS of every head from the traces t of the two errors: non-negative, each layer's heads sum to 1.

    - "sum" (Eq. 7 to 9): s_e(h) = t_e(h) / Σ t_e over the layer, HeSS = λ s_cam + (1-λ) s_pc.
    - "linear": raw traces are mixed, λ t_cam + (1-λ) t_pc, and divided by their sum over the layer. The error
      of the larger traces outweighs the other.
    - "softmax": s_e = softmax of t_e / mean t_e over the layer, mixed as in "sum".
    - "log": s_e(h) = log(1 + t_e(h) / mean t_e), divided by its sum over the layer, mixed as in "sum".

    The paper names the last three (Table 1) without defining them. A softmax of raw traces would be one-hot
    or even, and a logarithm negative or linear, depending only on the unit of the traces: that of the scene,
    the error and the weights. In units of the layer's mean trace, 1 is the average head whatever the unit.
    So a factor on one error or one layer changes nothing, except in "linear", whose point it is; there a
    factor common to both errors changes nothing. Compared with "sum", log evens out; softmax gives nearly all
    to a dominant head, but never nothing to any.

    Args:
        camera: [..., L, H] float64, tr(F) of the camera error; no layer all zero unless λ is 0.
        points: the same of the point error; no layer all zero unless λ is 1.
        camera_weight: λ of Eq. 9, in [0, 1]; an error of weight 0 is not read.
        normalization: as above.

    Returns:
        [..., L, H] float64.

    Example:
        >>> camera, points = torch.tensor([[1.0, 3.0]]), torch.tensor([[9.0, 3.0]])
        >>> head_weights(camera, points, 0.5).tolist()
        [[0.5, 0.5]]
        >>> head_weights(camera, points, 0.5, "linear").tolist()
        [[0.625, 0.375]]
    """
    parts = [(weight, t) for weight, t in ((camera_weight, camera), (1 - camera_weight, points)) if weight]
    if normalization == "linear":
        mixed = torch.stack([weight * t for weight, t in parts]).sum(0)
        return mixed / mixed.sum(-1, keepdim=True)
    return torch.stack([weight * _shares(t, normalization) for weight, t in parts]).sum(0)


def _shares(traces: Tensor, normalization: Normalization) -> Tensor:
    """What each head has of its layer, [..., L, H], for one error."""
    relative = traces / traces.mean(-1, keepdim=True)
    if normalization == "softmax":
        return relative.softmax(-1)
    values = relative.log1p() if normalization == "log" else traces
    return values / values.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
    """Fisher traces of every global-attention head on every calibration scene.

    Raises ValueError unless every trace that `info.projections` promises is there, finite and non-negative,
    and of the shape [N, L, H] that `info` says.

    Example:
        >>> info = ScoresInfo(backbone="vggt", num_layers=1, num_heads=2, head_dim=64, dataset="toy", seed=0,
        ...                   scene_ids=("a",), view_ids=(("0", "1"),), num_views=2, camera_weight=0.5)
        >>> traces = {"camera": torch.tensor([[[1.0, 3.0]]]), "points": torch.tensor([[[5.0, 5.0]]])}
        >>> scores = HeadScores(traces, info)
        >>> scores.weights().tolist(), scores.weights(camera_weight=1).tolist()
        ([[0.375, 0.625]], [[0.25, 0.75]])
    """

    scene_traces: Mapping[str, Tensor]  # [N, L, H] float64 on the CPU by `trace_name`; "camera": of W_Q
    info: ScoresInfo

    def __post_init__(self) -> None:
        names = trace_names(self.info.projections)
        if set(self.scene_traces) != set(names):
            raise ValueError(f"scene_traces must have {names}, got {tuple(self.scene_traces)}.")
        shape = (len(self.info.scene_ids), self.info.num_layers, self.info.num_heads)
        traces = {name: self.scene_traces[name].detach().to("cpu", torch.float64) for name in names}
        for name, trace in traces.items():
            if tuple(trace.shape) != shape:
                raise ValueError(
                    f"scene_trace.{name} must be [scenes, layers, heads] = {list(shape)} by scene_ids, "
                    f"num_layers and num_heads, got {list(trace.shape)}."
                )
            bad = ~(torch.isfinite(trace) & (trace >= 0))
            if bad.any():
                scene, layer, head = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"scene_trace.{name} must be finite and >= 0, got {trace[scene, layer, head]}, "
                    f"in layer {layer}, head {head}, scene {self.info.scene_ids[scene]!r}; calibrate again."
                )
        object.__setattr__(self, "scene_traces", traces)

    def __repr__(self) -> str:
        info = self.info
        return f"HeadScores({info.backbone}, {info.num_layers} x {info.num_heads} heads, {info.dataset})"

    @property
    def fisher_trace(self) -> dict[str, Tensor]:
        """tr(F) of Eq. 5 and 6, the mean over scenes: by `trace_name`, [L, H] float64."""
        return {name: trace.mean(0) for name, trace in self.scene_traces.items()}

    def weights(
        self,
        camera_weight: float | None = None,
        projection: Projection = "query",
        normalization: Normalization = "sum",
    ) -> Tensor:
        """HeSS, [L, H] float64: non-negative, the heads of a layer sum to 1.

        Args:
            camera_weight: λ; None takes the recommended one. An error with weight 0 is not read.
            projection: whose traces: of W_Q (the paper's choice), W_K or W_V.
            normalization: how two traces become a weight, see `head_weights`.

        Raises:
            ValueError: a setting out of range, a projection that was not calibrated, or a layer whose traces
                are all zero. An error that does not depend on a layer's heads is the sign of a broken
                calibration, which equal weights would hide.
        """
        share = self.info.camera_weight if camera_weight is None else camera_weight
        if not 0 <= share <= 1:
            raise ValueError(f"camera_weight must be in [0, 1], got {share!r}.")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}.")
        if projection not in self.info.projections:
            raise ValueError(
                f"no traces of the {projection} projection; these scores have "
                f"{', '.join(self.info.projections)}. "
                f"Calibrate with CalibrationConfig(projections=('query', {projection!r}))."
            )
        traces = {error: self.scene_traces[trace_name(error, projection)].mean(0) for error in ERRORS}
        for error, weight in zip(ERRORS, (share, 1 - share), strict=True):
            silent = (traces[error] == 0).all(1)
            if weight and silent.any():
                raise ValueError(
                    f"fisher_trace.{trace_name(error, projection)} of global layer "
                    f"{int(silent.nonzero()[0])} is zero for every head, so its heads have no order; "
                    "calibrate again, or give this error no weight (camera_weight 0 or 1)."
                )
        return head_weights(traces["camera"], traces["points"], share, normalization)

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the traces."""
        return traces_sha256(self.scene_traces)

    def shares(self) -> dict[str, Tensor]:
        """What a picture of scores shows: the share of each head in its layer [L, H], for either error."""
        return {"camera": self.weights(1.0), "points": self.weights(0.0)}

    def of_scenes(self, scene_ids: Sequence[str]) -> Self:
        """The scores of some of the calibration scenes alone; ValueError for one that is none of them."""
        order = {scene_id: index for index, scene_id in enumerate(self.info.scene_ids)}
        unknown = [scene_id for scene_id in scene_ids if scene_id not in order]
        if unknown or not scene_ids:
            raise ValueError(f"these scores have {len(order)} scenes, and not {unknown or 'none at all'}.")
        rows = [order[scene_id] for scene_id in scene_ids]
        view_ids = tuple(self.info.view_ids[row] for row in rows)
        info = replace(self.info, scene_ids=tuple(scene_ids), view_ids=view_ids)
        return type(self)({name: trace[rows] for name, trace in self.scene_traces.items()}, info)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the two files into a folder, made if needed; a reader never sees half a file.

        The bytes depend on traces and info alone, so equal scores are equal files.
        """
        write_sidecar(Path(folder), self.info, self.scene_traces)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Read the two files of a folder.

        Raises:
            ValueError: a file is missing, cut short, changed or of a newer format, a field is unknown,
                missing or impossible, or the two files are not of one calibration; names file and field.
        """
        info, traces = read_sidecar(Path(folder))
        with input_errors(ValueError, prefix=f"{Path(folder) / SCORES_FILE}: "):
            return cls(traces, info)

    def push_to_hub(self, repo_id: str, **options: Any) -> Pushed:
        """Push to a repository of its own, or with `alias=` into a model's: see `publish.push_to_hub`."""
        from .publish import push_to_hub

        return push_to_hub(self, repo_id, **options)
