"""One HTML page that holds everything it shows: it opens offline, and can be sent as a file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..files import write_atomic
from .packing import metric_headings, pack_scene
from .results import DISTANCE_NOTE, SceneResult

MAX_BYTES = 25_000_000
MAX_POINTS = 60_000  # of a cloud
_ALL_POINTS = 900_000  # of all clouds: 13 MB
GREEN_NOTE = (
    "The error of a point in the 3D views is its distance to the nearest known point (the paper's Fig. 5); "
    "points whose pixel has no known point are not judged. The least confident 20 % of the points, those "
    "at depth edges, and those that more photos contradict than confirm are left out. A cloud that has "
    "shrunk into the true one shows little green, whatever its point error."
)
SECONDS_NOTE = (
    "Seconds are those of one forward pass; the first one of a process on a GPU also loads kernels."
)
_PARTS = {"style": "page.css", "points": "points.js", "script": "page.js"}


@dataclass(frozen=True)
class Page:
    """What stands on a page beside its scenes."""

    title: str
    subtitle: str
    notes: Sequence[str] = ()  # what a reader must know
    shares: Mapping[str, Tensor] | None = None  # "camera" and "points" [L, H] for the heat map
    configurations: Mapping[str, Any] | None = None  # JSON values by heading
    numbers: str = ""  # HTML of more numbers


def pack_scenes(results: Iterable[SceneResult], num_clouds: int) -> Iterator[dict[str, Any]]:
    """The scenes of a page, one at a time; of `num_clouds` clouds in all, so that they fit."""
    for result in results:
        yield pack_scene(result, min(MAX_POINTS, _ALL_POINTS // num_clouds))


def write_page(path: Path, page: Page, scenes: Sequence[dict[str, Any]]) -> None:
    """Write the page; the file holds the old one or the new, never a part.

    Args:
        path: of the HTML file.
        page: all but the scenes.
        scenes: of `pack_scenes`; may be none.

    Raises:
        InputError: it would be larger than 25 MB.
    """
    shares = None if page.shares is None else {name: share.tolist() for name, share in page.shares.items()}
    data = {
        "scenes": scenes,
        "metrics": metric_headings(),
        "notes": [*((DISTANCE_NOTE, GREEN_NOTE, SECONDS_NOTE) if scenes else ()), *page.notes],
        "shares": shares,
        "configurations": page.configurations or {},
    }
    template = files(__package__)
    values = {name: (template / file).read_text(encoding="utf-8") for name, file in _PARTS.items()}
    # "<" would let a name in the data end the script element.
    values["data"] = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    values |= {"title": escape(page.title), "subtitle": escape(page.subtitle), "numbers": page.numbers}
    html = (template / "page.html").read_text(encoding="utf-8")
    content = re.sub(r"\{\{ (\w+) \}\}", lambda match: values[match[1]], html).encode()
    if len(content) > MAX_BYTES:
        raise InputError(
            f"the page would have {len(content) / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}; show fewer "
            "scenes or methods."
        )
    write_atomic(path, content)
