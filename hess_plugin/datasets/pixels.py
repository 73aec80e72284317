"""Image files of datasets as arrays; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # as Pillow reports damage


def read_photo(path: Path) -> np.ndarray:
    """[h, w, 3] uint8, as stored: an EXIF orientation is ignored, since cameras describe the stored pixels.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except _UNREADABLE as error:
        cause = _cause(error)
        raise InputError(f"cannot read photo {str(path)!r}: {cause}; replace or remove it.") from error


def read_channel(path: Path, what: str = "depth map") -> np.ndarray:
    """Values [h, w] of an image of one channel, in the type that the file has (1-bit images give bool).

    Args:
        path: of the file.
        what: it holds, for the message.

    Raises:
        InputError: the file is missing or damaged, or has several channels.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except _UNREADABLE as error:
        raise InputError(f"cannot read {what} {str(path)!r}: {_cause(error)}.") from error
    if values.ndim != 2:
        raise InputError(f"{what} {str(path)!r} must be one channel, got {values.shape[2]} channels.")
    return values


def _cause(error: Exception) -> str:
    """What went wrong; the operating system's text alone, since its error repeats the path."""
    return getattr(error, "strerror", None) or str(error)
