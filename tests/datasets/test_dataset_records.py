"""JSON read with its place kept in mind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from hess_plugin.datasets.records import Record, read_json
from hess_plugin.errors import InputError

RECORD = Record({"a": {"b": [1, 2]}, "name": "x", "empty": "", "bad": [1, None, float("nan")]}, "'f.json'")


def test_fields() -> None:
    assert RECORD.field("a.b") == [1, 2]
    assert RECORD.text("name") == "x"
    np.testing.assert_array_equal(RECORD.numbers("a.b", (2,)), [1, 2])
    np.testing.assert_array_equal(RECORD.numbers("bad", (3,)), [1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("name", "message"),
    [("c", "has no field 'c'"), ("a.c", "has no field 'a.c'"), ("name.x", "has no field 'name.x'")],
)
def test_missing(name: str, message: str) -> None:
    for ask in (RECORD.field, RECORD.text, lambda each: RECORD.numbers(each, ())):
        with pytest.raises(InputError, match=f"^'f.json' {message}\\.$"):
            ask(name)


def test_of_another_kind() -> None:
    for name in ("a", "empty"):
        with pytest.raises(InputError, match=f"^'f.json': '{name}' must be a text, got"):
            RECORD.text(name)
    for name, shape, what in (
        ("a.b", (3,), "3 numbers"),
        ("a.b", (1, 2), "1 x 2 numbers"),
        ("a", (), "a number"),
    ):
        with pytest.raises(InputError, match=f"^'f.json': '{name}' must be {what}"):
            RECORD.numbers(name, shape)


def test_objects_can_be_left_out_while_reading(tmp_path: Path) -> None:
    for name in ("x.json", "x.jgz"):
        data = json.dumps([{"n": 1, "in": {"n": 2}}, {"n": 3}]).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("jgz") else data)
        assert read_json(tmp_path / name).values[1] == {"n": 3}
        kept = read_json(tmp_path / name, lambda values: None if values["n"] > 2 else values)
        assert kept.values == [{"n": 1, "in": {"n": 2}}, None]


@pytest.mark.parametrize("name", ["x.json", "x.jgz"])
def test_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = gzip.compress(b"[1, 2, 3]") if name.endswith("jgz") else b"[1, 2, 3]"
    wrong = whole[:10] + bytes([whole[10] ^ 255]) + whole[11:] if name.endswith("jgz") else b"[1, 2, x]"
    for content in (b"", whole[:-1], wrong, b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"cannot read '.*{name}'"):
            read_json(path)
    path.unlink()
    with pytest.raises(InputError, match=f"cannot read '.*{name}'.*No such file"):
        read_json(path)
