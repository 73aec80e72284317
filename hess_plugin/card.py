"""The card and the picture that go with pushed scores; all they say comes from the scores themselves.

Both are a pure function of scores, repository name and measurements, so that pushing twice changes nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from .calibration.summary import format_summary
from .errors import input_errors
from .evaluation.measurements import Measurement
from .plots.figure import png
from .plots.heatmap import score_heatmap
from .scores import CONFIG_FILE, HeadScores, ScoresInfo
from .tables import top_heads

CARD_FILE, PICTURE_FILE = "README.md", "head_sensitivity.png"

TASK = "image-to-3d"
NATIVE = {"vggt": "VggtModel", "pi3": "Pi3Model"}  # families with a class of ours
OWN_SCENES = ("folder", "synthetic")  # calibration sets that nobody else knows by this name
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOLD_ELSEWHERE = {
    "backbone", "num_layers", "num_heads", "head_dim", "weights_sha256", "base_model", "base_revision",
    "dataset", "scene_ids", "view_ids", "skipped", "versions", "format_version",
}  # fmt: skip


class Table(NamedTuple):
    """A table of the card."""

    headings: list[str]
    rows: list[list[str]]


def card_files(
    scores: HeadScores, repo_id: str, alias: str | None = None, measurements: Sequence[Measurement] = ()
) -> dict[str, bytes]:
    """The card and its picture by file name.

    Args:
        scores: what the card describes.
        repo_id: repository that the scores go to.
        alias: their name in a model repository; None for a repository of scores.
        measurements: evaluation results. Those of the method "hess" become the `model-index` of the card,
            the others are what they are compared with in its table.

    Raises:
        ImportError: jinja2 or matplotlib is missing; names the extra to install.
        InputError: a layer without any sensitivity, see `HeadScores.weights`.
    """
    with input_errors(ValueError):
        shares = scores.shares()
    card = _text(scores, repo_id, alias, measurements)
    return {CARD_FILE: card.encode(), PICTURE_FILE: png(score_heatmap(shares))}


def base_repository(info: ScoresInfo) -> str | None:
    """Hub id of the calibrated model; None without a commit of it, since a folder has none."""
    is_id = info.base_revision and info.base_model and _HUB_ID.fullmatch(info.base_model)
    return info.base_model if is_id else None


def _text(scores: HeadScores, repo_id: str, alias: str | None, measurements: Sequence[Measurement]) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError('model cards need jinja2; pip install "hess-plugin[hub]".') from error
    info, base = scores.info, base_repository(scores.info)
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = (files("hess_plugin.hub_cards") / "sidecar_card.md.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        metadata=_metadata(info, repo_id, measurements),
        info=info,
        base_model=base,
        base_name=base.partition("/")[2] if base else f"a {info.backbone} model",
        snippet=_snippet(info, repo_id, alias),
        picture=PICTURE_FILE,
        config_file=CONFIG_FILE,
        even_share=f"{1 / info.num_heads:.2f}",
        top_heads=Table(*top_heads(scores)),
        settings=list(_settings(info)),
        summary=format_summary(scores),
        software=", ".join(f"{name} {number}" for name, number in info.versions.items()),
        evaluation=_evaluation(measurements),
        commands=list(dict.fromkeys(each.command for each in measurements)),
    )


def _metadata(info: ScoresInfo, repo_id: str, measurements: Sequence[Measurement]) -> str:
    """The YAML block that the Hub reads."""
    from huggingface_hub.repocard_data import EvalResult, ModelCardData

    base = base_repository(info)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=each.dataset,
            dataset_name=each.dataset,
            metric_type=each.metric,
            metric_value=each.value,
            metric_name=f"{each.metric} at density {each.density:.3f}",
            metric_args={"num_scenes": each.num_scenes, "num_views": each.num_views},
        )
        for each in measurements
        if each.method == "hess"
    ]
    data = ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        library_name="hess-plugin",
        pipeline_tag=TASK,
        tags=["hess", "sparse-attention", info.backbone],
        datasets=None if info.dataset in OWN_SCENES else [info.dataset],
        model_name=repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _snippet(info: ScoresInfo, repo_id: str, alias: str | None) -> str:
    """Python code that loads the model with these scores."""
    model = repo_id if alias else base_repository(info) or "path/to/the/model"
    arguments = f'"{model}", hess="{alias or repo_id}"'
    if info.backbone in NATIVE:
        name = NATIVE[info.backbone]
        return f"from hess_plugin import {name}\n\nmodel = {name}.from_pretrained({arguments})"
    comment = "# ModelClass: the class that loads your model without scores"
    return f"import hess_plugin\n\n{comment}\nmodel = hess_plugin.from_pretrained(ModelClass, {arguments})"


def _settings(info: ScoresInfo) -> Iterator[tuple[str, str]]:
    """Every field that the card does not tell elsewhere, so that none is forgotten; groups are opened."""
    for name, value in dataclasses.asdict(info).items():
        if name not in _TOLD_ELSEWHERE:
            for key, each in (value if isinstance(value, dict) else {name: value}).items():
                yield _cell(key.replace("_", " ")), _cell(each)


def _cell(value: Any) -> str:
    """Text of a table's cell or a list's item: one line that no Markdown can leave."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or "none"
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(str(value).split()))


def _evaluation(measurements: Sequence[Measurement]) -> Table | None:
    """One row for each run that was measured, one column for each metric."""
    metrics = list(dict.fromkeys(each.metric for each in measurements))
    runs: dict[tuple[Any, ...], dict[str, float]] = {}
    for each in measurements:
        run = (each.dataset, each.num_scenes, each.num_views, each.method, f"{each.density:.3f}")
        runs.setdefault(run, {})[each.metric] = each.value
    headings = ["scenes of", "scenes", "views", "method", "density", *map(_cell, metrics)]
    rows = [
        [*map(_cell, run), *(f"{values[m]:.4f}" if m in values else "not measured" for m in metrics)]
        for run, values in runs.items()
    ]
    return Table(headings, rows) if rows else None
