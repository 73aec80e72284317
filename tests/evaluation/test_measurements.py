"""Files of measurements: what is written is read, what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hess_plugin.errors import InputError
from hess_plugin.evaluation.measurements import Measurement, read_measurements, write_measurements

RECORD: dict[str, Any] = {
    "dataset": "dtu", "method": "hess", "metric": "ate", "value": 0.5, "density": 0.25,
    "num_scenes": 22, "num_views": 49, "command": "hess evaluate",
}  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    measured = [Measurement(**RECORD), Measurement(**RECORD | {"method": "dense", "density": 1, "value": -3})]
    write_measurements(path, measured)
    assert json.loads(path.read_text())[0] == RECORD
    assert read_measurements(path) == read_measurements(str(path)) == measured
    write_measurements(path, measured[:1])
    assert read_measurements(path) == measured[:1]


def test_every_field_is_needed() -> None:
    assert {field.name for field in dataclasses.fields(Measurement)} == set(RECORD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", ""),
        ("method", 3),
        ("metric", " "),
        ("command", None),
        ("value", float("nan")),
        ("value", float("inf")),
        ("value", "0.5"),
        ("value", True),
        ("density", 1.01),
        ("density", None),
        ("num_scenes", 0),
        ("num_views", 2.5),
    ],
)
def test_impossible_values(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Measurement(**RECORD | {name: value})
    path = tmp_path / "measured.json"
    path.write_text(json.dumps([RECORD, RECORD | {name: value}]))
    with pytest.raises(InputError, match=rf"measured\.json, record 2: {name} must be"):
        read_measurements(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "measured.json: Expecting value"),
        ("{}", "measured.json: must hold a JSON list of measurements"),
        ("[]", "measured.json: must hold a JSON list of measurements, at least one"),
        ("[3]", "record 1: must be a JSON object, got 3"),
        ("[{}]", "record 1: lacks the keys dataset, method, metric, value, density, num_scenes"),
        (json.dumps([RECORD | {"auc": 1}]), "record 1: unknown key 'auc' in Measurement; known: dataset"),
    ],
)
def test_unreadable(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "measured.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_measurements(tmp_path / "measured.json")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"measured\.json: .*No such file"):
        read_measurements(tmp_path / "measured.json")
