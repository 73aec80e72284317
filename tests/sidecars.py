"""Helpers of the loading tests: scores made for a model, models and sidecars put on the local server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import TinyVGGT
from hub_server import HubServer
from torch import Tensor, nn

from hess_plugin import HeadScores, HeSSConfig
from hess_plugin.backbones import find_backbone
from hess_plugin.errors import InputError
from hess_plugin.scores import CONFIG_FILE, SCORES_FILE, ScoresInfo, trace_names
from hess_plugin.sidecar import resolve

SIDECAR = (CONFIG_FILE, SCORES_FILE)
SAVED = {f"hess/toy/{name}" for name in SIDECAR}  # what saving a model with `scores_of(model)` adds
BASE = "facebook/VGGT-1B"


def sparse(scores: object = True) -> HeSSConfig:
    """Settings under which even a tiny model skips blocks."""
    return HeSSConfig(scores=scores, sparse_ratio=0.8, cdf_threshold=0.0, q_block_size=4, kv_block_size=4)


def scores_of(model: nn.Module, dataset: str = "toy", **changes: Any) -> HeadScores:
    """Scores that fit the model; the name of the dataset seeds their values and tells sidecars apart."""
    backbone = find_backbone(model)
    attentions = list(backbone.global_attentions(model).values())
    heads = backbone.num_heads(attentions[0])
    values: dict[str, Any] = {
        "backbone": backbone.name,
        "num_layers": len(attentions),
        "num_heads": heads,
        "head_dim": backbone.head_dim(attentions[0]),
        "dataset": dataset,
        "scene_ids": ("a", "b"),
        "view_ids": (("0", "1"), ("1", "2")),
        "num_views": 2,
        "seed": 0,
        "camera_weight": 0.5,
        "weights_sha256": backbone.weights_sha256(model),
    }
    info = ScoresInfo(**(values | changes))
    generator = torch.Generator().manual_seed(sum(dataset.encode()))
    traces = {
        name: torch.rand(2, len(attentions), heads, generator=generator, dtype=torch.float64)
        for name in trace_names(info.projections)
    }
    return HeadScores(traces, info)


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """Content of all files below a folder by relative path."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def sidecar_files(scores: HeadScores, folder: Path, prefix: str = "") -> dict[str, bytes]:
    """The two files of a sidecar, written into a new folder below `folder`."""
    folder = folder / f"sidecar-{scores.info.dataset}"
    scores.save(folder)
    return files_of(folder, prefix)


def publish(
    hub: HubServer, repo_id: str, model: nn.Module, folder: Path, *aliases: str, root: str = ""
) -> None:
    """Put a model on the server, with a sidecar under `hess/` for each alias, and one at its root."""
    model.save_pretrained(folder / "weights")
    files = files_of(folder / "weights")
    for alias in aliases:
        files |= sidecar_files(scores_of(model, alias), folder, f"hess/{alias}/")
    if root:
        files |= sidecar_files(scores_of(model, root), folder)
    hub.put(repo_id, files)


def put_sidecars(
    hub: HubServer, folder: Path, repo_id: str, *aliases: str, root: str = "", revision: str = "main"
) -> str:
    """Put sidecars for TinyVGGT on the server, without weights; returns the commit."""
    files = {"config.json": b"{}"}
    for alias in aliases:
        files |= sidecar_files(scores_of(TinyVGGT(), alias), folder, f"hess/{alias}/")
    if root:
        files |= sidecar_files(scores_of(TinyVGGT(), root), folder)
    return hub.put(repo_id, files, revision=revision)


def found(hess: object, base: object = BASE, **kwargs: object) -> str:
    """Dataset of the sidecar that `hess=` resolves to."""
    return resolve(hess, base, **kwargs).scores.info.dataset


def refusal(hess: object, base: object = BASE, **kwargs: object) -> str:
    """Message with which `hess=` is refused."""
    with pytest.raises(InputError) as caught:
        resolve(hess, base, **kwargs)
    return str(caught.value)


def images(views: int = 3, size: int = 16) -> Tensor:
    """Random photos [1, views, 3, size, size] in [0, 1]."""
    return torch.rand(1, views, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs(model: nn.Module, photos: Tensor | None = None) -> list[Tensor]:
    """All tensors that the model predicts, in a fixed order."""
    predicted = model(images() if photos is None else photos)
    return [predicted[key] for key in sorted(predicted) if isinstance(predicted[key], Tensor)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of outputs are equal, bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))
