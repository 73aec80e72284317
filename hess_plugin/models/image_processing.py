"""From photos to the tensors that VGGT and π³ take, with the loading rules of the original models."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_processing_base import BatchFeature, ImageProcessingMixin

from ..errors import InputError

Photo = str | os.PathLike | Image.Image | np.ndarray

_WHITE = 255
_SERVICE_KEYS = ("image_processor_type", "processor_class", "auto_map")  # written by transformers


class ProcessedImages(BatchFeature):
    """The keyword arguments of one model call, `model(**processed)`, and where their pixels came from.

    Its one key (`images` for VGGT, `imgs` for π³) holds [V, 3, height, width] float32 in [0, 1].

    Convention: integer coordinates at pixel centres. `pixel_transform` A maps homogeneous pixels of a photo
    (upright, see `VggtImageProcessor`) to pixels of the model's input, so with intrinsics K
    `K_input = A @ K_photo` and `K_photo = A.inverse() @ K_input`.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        pixel_transform: Tensor | None = None,  # [V, 3, 3] float64: diagonal scale and an offset
        photo_sizes: list[tuple[int, int]] | None = None,  # (height, width) of each upright photo
    ) -> None:
        super().__init__(data)
        self.pixel_transform = pixel_transform
        self.photo_sizes = photo_sizes

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _ViewProcessor(ImageProcessingMixin):
    """Shared course: read, resize and crop one photo at a time, then put all on canvases of one size."""

    valid_kwargs: type
    model_input_names: tuple[str, ...]
    resample: Image.Resampling

    def __init__(self, **kwargs: Any) -> None:
        unknown = [key for key in kwargs if key not in _SERVICE_KEYS]
        if unknown:
            known = ", ".join(self.valid_kwargs.__annotations__)
            raise ValueError(f"unknown key {unknown[0]!r} in {type(self).__name__}; known: {known}.")
        super().__init__()

    def __call__(self, images: Photo | Iterable[Photo]) -> ProcessedImages:
        """Prepare the photos of one scene.

        Args:
            images: one photo or V of them: paths, PIL images, or arrays [height, width, 3] of uint8 or
                of floats in [0, 1] (rounded to 8 bits, like a file); also one array [V, height, width, 3].

        Raises:
            InputError: no photo, a file that cannot be read (named), or an array of another form.
        """
        single = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", None) == 3
        photos: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
        if not photos:
            raise InputError("no images given; pass at least one path, PIL image or array.")
        views, transforms, sizes = [], [], []
        for index, photo in enumerate(photos):
            image = _read(photo, index)
            sizes.append((image.height, image.width))
            width, height = self._resized(image.width, image.height, sizes[0][::-1])
            transform = _scaling(width / image.width, height / image.height)
            view = np.asarray(image.resize((width, height), self.resample))
            view, shift = _centre(view, *self._window(height, width))
            views.append(view)
            transforms.append(_shifting(*shift) @ transform)
        height, width = (max(view.shape[axis] for view in views) for axis in (0, 1))
        pixels = np.empty((len(views), height, width, 3), np.uint8)
        for index, view in enumerate(views):
            pixels[index], shift = _centre(view, height, width)
            transforms[index] = _shifting(*shift) @ transforms[index]
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
        return ProcessedImages({self.model_input_names[0]: tensor}, torch.tensor(np.stack(transforms)), sizes)

    def _resized(self, width: int, height: int, first: tuple[int, int]) -> tuple[int, int]:
        """Width and height after resizing; `first` is (width, height) of the scene's first photo."""
        raise NotImplementedError

    def _window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which a resized view is cropped or padded around its centre."""
        return height, width


class VggtImageProcessor(_ViewProcessor):
    """VGGT's preprocessing: `model(**VggtImageProcessor()(["a.jpg", "b.jpg"]))`.

    - `mode="crop"`: width `size`, height to the nearest multiple of `patch_size`; what is taller than `size`
      is cropped to it around the centre.
    - `mode="pad"`: longer side `size`, shorter side to the nearest multiple of `patch_size`, then padded with
      white to a square; nothing is lost.

    Both use PIL's bicubic filter. Transparent pixels become white; views of different size are padded with
    white to the largest, centred, an odd pixel at the bottom or right.

    Departure from the original: photos are turned upright by their EXIF orientation (the original ignores it
    and reconstructs photos of a turned camera lying on their side).

    The published VGGT repositories have no preprocessor_config.json: the defaults here are right for them.
    Example:
        >>> photo = np.zeros((300, 400, 3), np.uint8)
        >>> VggtImageProcessor()([photo, photo])["images"].shape
        torch.Size([2, 3, 392, 518])
    """

    class valid_kwargs(TypedDict, total=False):  # the name transformers looks for
        mode: str
        size: int
        patch_size: int

    model_input_names = ("images",)
    resample = Image.Resampling.BICUBIC

    def __init__(self, mode: str = "crop", size: int = 518, patch_size: int = 14, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if mode not in ("crop", "pad"):
            raise ValueError(f"mode must be one of crop, pad; got {mode!r}.")
        if patch_size < 1 or size < 1 or size % patch_size:
            raise ValueError(f"size must be a positive multiple of patch_size {patch_size}, got {size}.")
        self.mode = mode
        self.size = size
        self.patch_size = patch_size

    def _resized(self, width: int, height: int, first: tuple[int, int]) -> tuple[int, int]:
        if self.mode == "pad" and height > width:
            return self._whole_patches(width * self.size / height), self.size
        return self.size, self._whole_patches(height * self.size / width)

    def _whole_patches(self, length: float) -> int:
        return max(1, round(length / self.patch_size)) * self.patch_size

    def _window(self, height: int, width: int) -> tuple[int, int]:
        return (self.size, self.size) if self.mode == "pad" else (min(height, self.size), width)


class Pi3ImageProcessor(_ViewProcessor):
    """π³'s preprocessing: `model(**Pi3ImageProcessor()(["a.jpg", "b.jpg"]))`.

    The first photo sets one size for all: its aspect ratio in whole patches, at most `pixel_limit` pixels.
    Every photo is resized to it with PIL's Lanczos filter, also one of another aspect ratio. Transparency and
    EXIF orientation as in `VggtImageProcessor`.

    Example:
        >>> Pi3ImageProcessor()(np.zeros((480, 640, 3), np.uint8))["imgs"].shape
        torch.Size([1, 3, 434, 574])
    """

    class valid_kwargs(TypedDict, total=False):  # the name transformers looks for
        pixel_limit: int
        patch_size: int

    model_input_names = ("imgs",)
    resample = Image.Resampling.LANCZOS

    def __init__(self, pixel_limit: int = 255_000, patch_size: int = 14, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if patch_size < 1 or pixel_limit < patch_size**2:
            raise ValueError(f"pixel_limit must hold one patch of {patch_size}², got {pixel_limit}.")
        self.pixel_limit = pixel_limit
        self.patch_size = patch_size

    def _resized(self, width: int, height: int, first: tuple[int, int]) -> tuple[int, int]:
        width, height = first
        scale = math.sqrt(self.pixel_limit / (width * height))
        columns, rows = (round(length * scale / self.patch_size) for length in first)
        while columns * rows * self.patch_size**2 > self.pixel_limit:
            if columns / rows > width / height:
                columns -= 1
            else:
                rows -= 1
        return max(1, columns) * self.patch_size, max(1, rows) * self.patch_size


def _read(photo: Any, index: int) -> Image.Image:
    """One photo as an upright RGB image; InputError names the file, or the position of an image or array."""
    named = isinstance(photo, str | os.PathLike)
    name = f"image {os.fspath(photo)!r}" if named else f"image number {index}"
    try:
        if isinstance(photo, np.ndarray):
            image = _from_array(photo)
        elif named:
            image = Image.open(photo)
        elif isinstance(photo, Image.Image):
            image = photo
        else:
            raise ValueError(f"a {type(photo).__name__} is no path, PIL image or array")
        if image.mode.startswith(("I", "F")):  # 16 or 32 bits; PIL would cut them off
            raise ValueError(f"its pixels are of PIL mode {image.mode!r}; convert it to 8 bits per channel")
        image = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # PIL reports a broken file as any of these, in part without its name.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"cannot read {name}: {reason.rstrip('.')}.") from error
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (_WHITE,) * 4), image)
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"an array must be [height, width, 3], got {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # also false for NaN
            raise ValueError(f"floats must be in [0, 1], got {array.min():.4g} to {array.max():.4g}")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an array must hold uint8 or floats in [0, 1], got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


def _centre(view: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """`view` cropped or padded with white around its centre, and the (x, y) that was added to its pixels."""
    rows, columns = view.shape[:2]
    top, left = max(0, rows - height) // 2, max(0, columns - width) // 2
    view = view[top : top + height, left : left + width]
    below, beside = height - view.shape[0], width - view.shape[1]
    padding = ((below // 2, below - below // 2), (beside // 2, beside - beside // 2), (0, 0))
    view = np.pad(view, padding, constant_values=_WHITE) if below or beside else view
    return view, (beside // 2 - left, below // 2 - top)


def _scaling(x: float, y: float) -> np.ndarray:
    # Resizing keeps corners, half a pixel outside the centres: u' + 0.5 = x (u + 0.5).
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _shifting(x: int, y: int) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)
