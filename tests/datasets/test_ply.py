"""Points of PLY files: all encodings, fields in any order, damage by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hess_plugin.datasets.ply import read_ply_points
from hess_plugin.errors import InputError

POINTS = np.array([[1.5, -2, 3], [0, 0.25, -7e3], [4, 5, 6]])
# Coordinates in another order, among other fields, in several types.
FIELDS = {"uchar": ("red", "u1"), "double": ("z", "f8"), "float": ("x", "f4"), "float32": ("y", "f4")}


def header(encoding: str, count: int = 3) -> bytes:
    fields = [f"property {kind} {name}" for kind, (name, _) in FIELDS.items()]
    faces = ["element face 1", "property list uchar int vertex_indices"]
    lines = ["ply", f"format {encoding} 1.0", "comment by a test", f"element vertex {count}", *fields, *faces]
    return "\n".join([*lines, "end_header", ""]).encode()


def body(order: str) -> bytes:
    vertices = np.zeros(len(POINTS), [(name, order + kind) for name, kind in FIELDS.values()])
    for axis, name in enumerate("xyz"):
        vertices[name] = POINTS[:, axis]
    return vertices.tobytes() + b"\x03" + np.array([0, 1, 2], order + "i4").tobytes()


TEXT = b"".join(f"255 {z} {x} {y}\n".encode() for x, y, z in POINTS) + b"3 0 1 2\n"
FILES = {
    "binary_little_endian": header("binary_little_endian") + body("<"),
    "binary_big_endian": header("binary_big_endian") + body(">"),
    "ascii": header("ascii") + TEXT,
    "ascii with \\r\\n": (header("ascii") + TEXT).replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_encoding(tmp_path: Path, kind: str) -> None:
    (tmp_path / "cloud.ply").write_bytes(FILES[kind])
    points = read_ply_points(tmp_path / "cloud.ply")
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points, POINTS)


LITTLE = FILES["binary_little_endian"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no PLY header"),
        (b"solid cube", "no PLY header"),
        (header("binary_little_endian").replace(b"end_header\n", b""), "no PLY header"),
        (LITTLE.replace(b"binary_little_endian", b"zip"), "'format' must be one of binary_little_endian"),
        (LITTLE.replace(b"float x", b"float u"), "at least 1 vertex with x, y and z"),
        (LITTLE.replace(b"vertex 3", b"vertex 0"), "at least 1 vertex"),
        (LITTLE.replace(b"vertex 3", b"vertex many"), "at least 1 vertex"),
        (LITTLE.replace(b"uchar red", b"list uchar int red"), "vertex field 'property list uchar int red'"),
        (LITTLE.replace(b"uchar red", b"half red"), "vertex field 'property half red'"),
        (LITTLE.replace(b"element vertex", b"element face 1\nelement vertex"), "first element is 'face'"),
        (LITTLE[: len(header("binary_little_endian")) + 40], "cut off: 2 of 3 vertices"),
        (header("ascii") + TEXT[:20], "cut off: 1 of 3 vertices"),
        (header("ascii") + TEXT.replace(b"1.5", b"one"), "could not convert string to float: b'one'"),
        (header("ascii") + TEXT.replace(b"0.25", b"nan"), "vertex 1 is not finite"),
    ],
)
def test_damage(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cloud.ply").write_bytes(content)
    with pytest.raises(InputError, match=rf"point cloud '.*cloud\.ply'.*{message}"):
        read_ply_points(tmp_path / "cloud.ply")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read point cloud '.*none\.ply'"):
        read_ply_points(tmp_path / "none.ply")
