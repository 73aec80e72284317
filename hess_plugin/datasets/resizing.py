"""From photos of any size to a model's input, with their cameras and depth maps."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import InputError


class Resizing:
    """Resize to a width, the height to the nearest multiple of a patch, then crop what is taller than wide.

    As VGGT's preprocessing: bicubic, and a tall photo keeps the middle square. Width and height are scaled by
    slightly different factors, since the height is rounded.

    Args:
        size: (height, width) of the photo, pixels.
        width: of the model's input, pixels, a multiple of `patch_size`.
        patch_size: pixels.

    Example:
        >>> resizing = Resizing((30, 40), width=20, patch_size=4)
        >>> resizing.height, resizing.width  # 15 rows, rounded to 4 patches
        (16, 20)
    """

    def __init__(self, size: tuple[int, int], width: int, patch_size: int) -> None:
        self.old_height, self.old_width = size
        self.width = width
        self.full_height = max(1, round(self.old_height * width / self.old_width / patch_size)) * patch_size
        self.height = min(self.full_height, width)
        self.top = (self.full_height - self.height) // 2

    def photo(self, photo: np.ndarray) -> np.ndarray:
        """[height, width, 3] uint8 of a photo [old height, old width, 3] uint8."""
        size = (self.width, self.full_height)
        resized = Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(resized)[self.top : self.top + self.height]

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """[height, width]: the value of the pixel in which each new pixel's centre falls.

        The depth map may be smaller or larger than the photo, if it covers the same rectangle.

        Raises:
            InputError: its aspect is another than the photo's (by a pixel or more).
        """
        rows, columns = depth.shape
        if abs(rows - self.old_height * columns / self.old_width) >= 1:
            raise InputError(
                f"a depth map of {columns} x {rows} pixels does not cover a photo of "
                f"{self.old_width} x {self.old_height}: their aspects must be equal."
            )
        new_rows = (np.arange(self.top, self.top + self.height) + 0.5) * rows / self.full_height
        new_columns = (np.arange(self.width) + 0.5) * columns / self.width
        return depth[np.ix_(new_rows.astype(int), new_columns.astype(int))]

    def intrinsics(self, intrinsics: np.ndarray) -> np.ndarray:
        """K [3, 3] for the new pixels; corners lie half a pixel outside centres: u' + 0.5 = s (u + 0.5)."""
        x, y = self.width / self.old_width, self.full_height / self.old_height
        return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2 - self.top], [0, 0, 1]]) @ intrinsics
