"""The page of a report: scenes of predictions, scores, and the sections of sweeps."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..scores import HeadScores
from ..tables import count_of
from ..viewer.clouds import write_scene
from ..viewer.page import Page, pack_scenes, write_page
from ..viewer.results import NAMES, SceneResult
from .scenes import Predictions


def write_report_page(
    path: Path,
    clouds: Path,
    predictions: Predictions | None,
    sections: Sequence[str],
    scores: Sequence[HeadScores],
    command: str,
) -> None:
    """Write the page, and the clouds of its scenes into a folder.

    Args:
        path: of the page; pictures that sections link to lie beside it.
        clouds: folder for PLY and GLB files, one folder per scene.
        predictions: None without any.
        sections: of sweeps, in Markdown.
        scores: of the sweeps; the heat map shows those of the predictions, or else the first.
        command: as it was called, for people.
    """
    scenes: list[dict[str, Any]] = []
    configurations: dict[str, Any] = {"Report": {"command": command}}
    subtitle, shown = "", scores[0] if scores else None
    if predictions is not None:
        scenes = list(pack_scenes(_written(predictions, clouds), predictions.num_clouds))
        configurations |= {
            NAMES.get(method, method): {name: value for name, value in run.items() if name != "views"}
            for method, run in predictions.runs.items()
        }
        shown = predictions.scores or shown
        subtitle = _subtitle(predictions)
    page = Page(
        title="Predictions side by side" if scenes else "Results of sweeps",
        subtitle=subtitle,
        shares=None if shown is None else shown.shares(),
        configurations=configurations,
        numbers="\n".join(_html(section, path.parent) for section in sections),
    )
    write_page(path, page, scenes)


def _written(predictions: Predictions, clouds: Path) -> Iterator[SceneResult]:
    """The scenes, their clouds written."""
    shown = tqdm(predictions.results(), "drawing", len(predictions.scene_ids), unit="scene", disable=None)
    for result in shown:
        write_scene(clouds / result.scene.name, result)
        yield result


def _subtitle(predictions: Predictions) -> str:
    run = next(iter(predictions.runs.values()))
    count = f"{len(predictions.scene_ids)} of {count_of(predictions.num_common, 'scene')} of {run['dataset']}"
    return f"{run['model']['name']} ({run['model']['family']}), {count}, seed {run['seed']}, {run['device']}"


def _html(section: str, folder: Path) -> str:
    """Markdown of ours as HTML that holds its pictures.

    Raises:
        ImportError: markdown-it-py is missing; names the extra to install.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        message = 'a page of sweeps needs markdown-it-py; pip install "hess-plugin[report]".'
        raise ImportError(message) from error
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(section)

    def held(match: re.Match[str]) -> str:
        content = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{content}"'

    return re.sub(r'src="(figures/[^"]+\.png)"', held, html)
