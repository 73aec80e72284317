"""Image files as arrays, and what cannot be read named; damaged trees are tested elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hess_plugin.datasets.pixels import read_channel, read_photo
from hess_plugin.errors import InputError


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_photos_of_any_mode_are_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(tmp_path / "photo.png")
    photo = read_photo(tmp_path / "photo.png")
    assert (photo.shape, photo.dtype) == ((3, 5, 3), np.uint8)
    assert (photo == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_channels_keep_their_type(tmp_path: Path, dtype: type) -> None:
    values = np.arange(15).reshape(3, 5).astype(dtype)
    Image.fromarray(values).save(tmp_path / "values.png")
    found = read_channel(tmp_path / "values.png")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("length", [0, 40, 200])
def test_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "values.png"
    noise = np.random.default_rng(0).integers(0, 255, (20, 20)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:length])
    for read, what in ((read_photo, "photo"), (read_channel, "depth map")):
        with pytest.raises(InputError, match=f"cannot read {what} '.*values.png'"):
            read(path)


def test_missing_file_is_named_once(tmp_path: Path) -> None:
    for read in (read_photo, read_channel):
        with pytest.raises(InputError) as caught:
            read(tmp_path / "gone.png")
        assert "No such file or directory" in str(caught.value)
        assert str(caught.value).count("gone.png") == 1


def test_several_channels(tmp_path: Path) -> None:
    Image.new("RGB", (5, 3)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask '.*mask\.png' must be one channel, got 3 channels"):
        read_channel(tmp_path / "mask.png", "mask")
