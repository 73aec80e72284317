"""Photos, depth maps and cameras at a model's size: hand-worked numbers, and one geometry for all three."""

from __future__ import annotations

import numpy as np
import pytest

from hess_plugin.datasets.resizing import Resizing
from hess_plugin.errors import InputError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((30, 40), (16, 20, 0)),  # 15 rows are nearest to 4 patches of 4
        ((10, 400), (4, 20, 0)),  # never less than a patch
        ((60, 20), (20, 20, 20)),  # 60 rows, of which the middle 20 stay
        ((20, 20), (20, 20, 0)),
    ],
)
def test_sizes(size: tuple[int, int], expected: tuple[int, int, int]) -> None:
    resizing = Resizing(size, width=20, patch_size=4)
    assert (resizing.height, resizing.width, resizing.top) == expected
    assert resizing.photo(np.zeros((*size, 3), np.uint8)).shape == (*expected[:2], 3)
    assert resizing.depth(np.zeros(size)).shape == expected[:2]


def test_intrinsics_hand_worked() -> None:
    """40 x 30 to 20 x 16: scales 1/2 and 8/15; the middle of the image stays its middle."""
    resizing = Resizing((30, 40), width=20, patch_size=4)
    intrinsics = resizing.intrinsics(np.array([[40, 0, 19.5], [0, 45, 14.5], [0, 0, 1.0]]))
    np.testing.assert_allclose(intrinsics, [[20, 0, 9.5], [0, 24, 7.5], [0, 0, 1]])


@pytest.mark.parametrize("size", [(30, 40), (90, 40), (23, 57)])
@pytest.mark.parametrize("share", [1, 3, 1 / 3])
def test_depth_lies_where_the_camera_says(size: tuple[int, int], share: float) -> None:
    """A depth map that holds its own coordinates is found again within one of its pixels, at any size."""
    resizing = Resizing(size, width=28, patch_size=7)
    rows, columns = (max(1, round(n * share)) for n in size)
    scale_v, scale_u = size[0] / rows, size[1] / columns
    v, u = np.mgrid[:rows, :columns]
    to_new = resizing.intrinsics(np.eye(3))
    for axis, own, length, scale in ((0, u, resizing.width, scale_u), (1, v, resizing.height, scale_v)):
        photo_coordinate = (own + 0.5) * scale - 0.5  # in pixels of the photo
        found = resizing.depth(photo_coordinate) * to_new[axis, axis] + to_new[axis, 2]
        expected = np.arange(length) if axis == 0 else np.arange(length)[:, None]
        assert np.abs(found - expected).max() <= 0.5 * scale * to_new[axis, axis] + 1e-9


def test_photo_and_camera_agree() -> None:
    """A bright block stays where K maps its middle; also below the crop of a tall photo."""
    photo = np.zeros((90, 40, 3), np.uint8)
    photo[40:50, 12:22] = 255
    resizing = Resizing((90, 40), width=28, patch_size=7)
    bright = resizing.photo(photo)[..., 0].astype(float)
    rows, columns = np.mgrid[: resizing.height, : resizing.width]
    middle = [(part * bright).sum() / bright.sum() for part in (columns, rows)]
    expected = resizing.intrinsics(np.array([[1, 0, 16.5], [0, 1, 44.5], [0, 0, 1.0]]))[:2, 2]
    np.testing.assert_allclose(middle, expected, atol=0.1)


@pytest.mark.parametrize("shape", [(31, 40), (40, 30), (15, 22)])
def test_depth_of_another_aspect_is_refused(shape: tuple[int, int]) -> None:
    resizing = Resizing((30, 40), width=20, patch_size=4)
    with pytest.raises(InputError, match=f"{shape[1]} x {shape[0]} pixels does not cover a photo of 40 x 30"):
        resizing.depth(np.ones(shape))


def test_depth_of_a_rounded_size_is_taken() -> None:
    """A third of 40 is no whole number of pixels."""
    assert Resizing((30, 40), width=20, patch_size=4).depth(np.ones((10, 13))).all()
