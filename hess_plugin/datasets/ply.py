"""Points of PLY files, as CO3D and DTU ship their clouds; colours, normals and faces are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError, input_errors

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "float32": "f4", "double": "f8", "float64": "f8"},
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_END = b"end_header"


def read_ply_points(path: Path) -> np.ndarray:
    """Positions [N, 3] float64 of the vertices, in the file's own world and unit; N is at least 1.

    All three encodings are read. What follows the vertices (faces, edges) is not looked at.

    Raises:
        InputError: naming the file and what in it is missing, cut off or not finite.
    """
    where = f"point cloud {str(path)!r}"
    with input_errors(OSError, prefix=f"cannot read {where}: "):
        content = path.read_bytes()
    header, end, rest = content.partition(_END)
    lines = header.decode("latin-1").split("\n")
    if lines[0].strip() != "ply" or not end:
        raise InputError(f"{where} has no PLY header from 'ply' to 'end_header'.")
    order, count, fields = _parse_header([line.split() for line in lines[1:]], where)
    body = rest.partition(b"\n")[2]
    vertex = np.dtype([(name, order + kind) for name, kind in fields.items()])
    points = _binary_points(body, count, vertex) if order else _text_points(body, count, vertex, where)
    if len(points) < count:
        raise InputError(f"{where} is cut off: {len(points)} of {count} vertices are there.")
    if not np.isfinite(points).all():
        bad = int(np.argmin(np.isfinite(points).all(1)))
        raise InputError(f"{where}: vertex {bad} is not finite.")
    return points


def _parse_header(lines: list[list[str]], where: str) -> tuple[str, int, dict[str, str]]:
    """Byte order ("" for text), number of vertices, and the type of each of a vertex's fields, in order."""
    order, count, fields, element = None, 0, {}, ""
    for words in lines:
        match words:
            case ["format", encoding, _]:
                order = _BYTE_ORDERS.get(encoding)
            case ["element", name, number]:
                if element == "" and name != "vertex":
                    raise InputError(f"{where}: the first element is {name!r}; it must be 'vertex'.")
                element = name
                if name == "vertex":
                    count = int(number) if number.isdecimal() else 0
            case ["property", kind, name] if element == "vertex" and kind in _TYPES:
                fields[name] = _TYPES[kind]
            case ["property", *_] if element == "vertex":
                raise InputError(f"{where}: cannot read the vertex field {' '.join(words)!r}.")
    if order is None:
        raise InputError(f"{where}: 'format' must be one of {', '.join(_BYTE_ORDERS)}.")
    if count < 1 or not {"x", "y", "z"} <= fields.keys():
        raise InputError(f"{where}: 'element vertex' must hold at least 1 vertex with x, y and z.")
    return order, count, fields


def _binary_points(body: bytes, count: int, vertex: np.dtype) -> np.ndarray:
    vertices = np.frombuffer(body, vertex, min(count, len(body) // vertex.itemsize))
    return np.stack([vertices[axis].astype(np.float64) for axis in "xyz"], 1)


def _text_points(body: bytes, count: int, vertex: np.dtype, where: str) -> np.ndarray:
    names = vertex.names or ()
    columns = [names.index(axis) for axis in "xyz"]
    rows = [row for line in body.split(b"\n")[:count] if len(row := line.split()) == len(names)]
    with input_errors(ValueError, prefix=f"{where}: "):
        return np.array([[float(row[column]) for column in columns] for row in rows]).reshape(-1, 3)
