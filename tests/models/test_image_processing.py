from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hess_plugin.models.image_processing import Pi3ImageProcessor, VggtImageProcessor

PROCESSORS = [
    VggtImageProcessor(),
    VggtImageProcessor(mode="pad"),
    VggtImageProcessor(mode="pad", size=112, patch_size=8),
    Pi3ImageProcessor(),
]


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 255, (height, width, 3)).astype(np.uint8)


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows with x, green with y: a pixel's colour tells where it was in the photo."""
    x = np.linspace(0, 1, width)[None].repeat(height, 0)
    y = np.linspace(0, 1, height)[:, None].repeat(width, 1)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


@pytest.mark.parametrize("processor", PROCESSORS, ids=["crop", "pad", "pad-tiny", "pi3"])
def test_smoke(processor):
    key = processor.model_input_names[0]
    out = processor([photo(50, 60), photo(50, 60, seed=1)])
    assert list(out) == [key]  # nothing else, so that model(**out) works
    assert out[key].dtype == torch.float32
    assert out[key].shape[:2] == (2, 3)
    assert out[key].min() >= 0
    assert out[key].max() <= 1
    assert all(length % processor.patch_size == 0 for length in out[key].shape[2:])
    assert out.photo_sizes == [(50, 60)] * 2
    assert not torch.equal(out[key][0], out[key][1])


@pytest.mark.parametrize(
    ("processor", "photo_size", "expected"),
    [
        (VggtImageProcessor(), (480, 640), (392, 518)),  # 388.5 / 14 = 27.75
        (VggtImageProcessor(), (1080, 1920), (294, 518)),  # 291.4 / 14 = 20.8
        (VggtImageProcessor(), (640, 480), (518, 518)),  # 686, cropped
        (VggtImageProcessor(), (5, 1000), (14, 518)),  # never less than one patch
        (VggtImageProcessor(size=112, patch_size=8), (480, 640), (80, 112)),  # 84 / 8 = 10.5, to even
        (VggtImageProcessor(mode="pad"), (480, 640), (518, 518)),
        (VggtImageProcessor(mode="pad"), (640, 480), (518, 518)),
        (Pi3ImageProcessor(), (480, 640), (434, 574)),
        (Pi3ImageProcessor(), (640, 480), (574, 434)),
        (Pi3ImageProcessor(), (500, 500), (504, 504)),
    ],
)
def test_hand_worked_sizes(processor, photo_size, expected):
    out = processor(photo(*photo_size))
    assert tuple(next(iter(out.values())).shape) == (1, 3, *expected)


def test_crop_equals_pil_by_hand():
    image = Image.fromarray(photo(90, 60))
    resized = np.asarray(image.resize((112, 168), Image.Resampling.BICUBIC), np.float32) / 255
    out = VggtImageProcessor(size=112, patch_size=8)(image)["images"][0]
    np.testing.assert_array_equal(out.permute(1, 2, 0).numpy(), resized[28 : 28 + 112])


def test_pad_is_white_and_puts_the_odd_pixel_last():
    out = VggtImageProcessor(mode="pad", size=33, patch_size=11)(np.zeros((33, 20, 3), np.uint8))["images"][0]
    assert (out[:, :, 5:27] == 0).all()  # 22 of 33 columns: 5 before, 6 after
    assert (out[:, :, :5] == 1).all()
    assert (out[:, :, 27:] == 1).all()
    wide = VggtImageProcessor(mode="pad", size=33, patch_size=11)(np.zeros((20, 33, 3), np.uint8))["images"][
        0
    ]
    assert torch.equal(wide, out.transpose(1, 2))


def test_views_of_different_size_are_padded_to_the_largest():
    black = [np.zeros((60, 120, 3), np.uint8), np.zeros((90, 120, 3), np.uint8)]
    out = VggtImageProcessor(size=120, patch_size=10)(black)["images"]
    assert out.shape == (2, 3, 90, 120)
    assert (out[1] == 0).all()
    assert (out[0, :, 15:75] == 0).all()
    assert (out[0, :, :15] == 1).all()
    assert (out[0, :, 75:] == 1).all()


def test_pi3_takes_the_size_of_the_first_photo_and_its_limit():
    processor = Pi3ImageProcessor()
    out = processor([photo(480, 640), photo(640, 480)])["imgs"]
    assert out.shape == (2, 3, 434, 574)
    by_hand = Image.fromarray(photo(640, 480)).resize((574, 434), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(out[1].permute(1, 2, 0).numpy(), np.asarray(by_hand, np.float32) / 255)
    for size in [(480, 640), (1080, 1920), (3, 4), (4000, 3001), (999, 1000)]:
        width, height = processor._resized(size[1], size[0], size[::-1])
        assert 200_000 < width * height <= 255_000
    assert processor._resized(10_000, 1, (10_000, 1))[1] == 14  # never less than one patch


@pytest.mark.parametrize("processor", PROCESSORS, ids=["crop", "pad", "pad-tiny", "pi3"])
@pytest.mark.parametrize("size", [(120, 200), (200, 120)])
def test_pixel_transform_points_at_the_same_scene_point(processor, size):
    # Two views of different size, so that the transform also carries the padding to the largest.
    pictures = [ramp(*size), ramp(150, 150)]
    out = processor(pictures)
    images = next(iter(out.values()))
    assert out.pixel_transform.shape == (2, 3, 3)
    for view, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        for x, y in [
            (width // 2, height // 2),
            (width // 4, 2 * height // 5),
            (3 * width // 4, 3 * height // 5),
        ]:
            u, v, _ = (out.pixel_transform[view] @ torch.tensor([x, y, 1.0], dtype=torch.float64)).tolist()
            colour = images[view, :, round(v), round(u)]
            near = 1.1 / min(height, width) + 1.1 / min(images.shape[2:])  # one pixel of each
            assert abs(colour[0] - x / (width - 1)) < near
            assert abs(colour[1] - y / (height - 1)) < near


def test_pixel_transform_by_hand():
    # 60 x 30 to width 120: twice the size, centres at u' = 2 u + 0.5; height 60 is padded to 100, 20 above.
    out = VggtImageProcessor(size=120, patch_size=10)([photo(30, 60), photo(50, 60)])
    expected = torch.tensor([[2, 0, 0.5], [0, 2, 20.5], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(out.pixel_transform[0], expected)
    # 60 x 90 to 120 x 180, cropped to 120: 30 lost above.
    out = VggtImageProcessor(size=120, patch_size=10)(photo(90, 60))
    expected = torch.tensor([[2, 0, 0.5], [0, 2, -29.5], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(out.pixel_transform[0], expected)


def test_every_kind_of_input_gives_the_same(tmp_path):
    array = photo(40, 56)
    Image.fromarray(array).save(tmp_path / "photo.png")
    processor = VggtImageProcessor(size=56, patch_size=8)
    expected = processor(array)["images"]
    path = tmp_path / "photo.png"
    for same in [
        *(path, str(path), [path]),
        Image.fromarray(array),
        *(array / 255, (array / 255).astype(np.float32)),
        *(array[None], (image for image in [array]), array[:, ::-1][:, ::-1]),
    ]:
        assert torch.equal(processor(same)["images"], expected)


def test_transparency_is_composed_on_white(tmp_path):
    processor = VggtImageProcessor(size=16, patch_size=8)
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 16, 8))
    out = processor(half)["images"][0]
    assert torch.equal(out[:, 0, 0], torch.tensor([1.0, 0, 0]))
    assert torch.equal(out[:, -1, 0], torch.ones(3))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (processor(tmp_path / "p.png")["images"] == 1).all()
    assert torch.equal(processor(Image.new("L", (16, 16), 51))["images"], torch.full((1, 3, 16, 16), 0.2))


def test_exif_orientation_turns_the_photo_upright(tmp_path):
    upright = Image.fromarray(photo(48, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    processor = VggtImageProcessor(mode="pad", size=48, patch_size=8)
    out = processor(tmp_path / "turned.png")
    assert out.photo_sizes == [(48, 32)]
    assert torch.equal(out["images"], processor(upright)["images"])


def test_bad_files_are_named(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(photo(64, 64)).save(good)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "depth16.png")
    for name in ["text.jpg", "cut.png", "empty.png", "missing.png", "depth16.png", ""]:
        with pytest.raises(ValueError, match=r"^cannot read image '.*[^.]\.$") as error:
            VggtImageProcessor()([good, tmp_path / name])
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no images given"),
        (np.zeros((0, 4, 4, 3)), "no images given"),
        (
            [photo(8, 8), np.zeros((3, 8, 8))],
            r"image number 1: an array must be \[height, width, 3\], got \[3, 8, 8\]",
        ),
        (np.zeros((8, 0, 3)), r"got \[8, 0, 3\]"),
        (np.full((8, 8, 3), 1.5), r"floats must be in \[0, 1\], got 1.5 to 1.5"),
        (np.full((8, 8, 3), np.nan), r"floats must be in \[0, 1\], got nan"),
        (np.zeros((8, 8, 3), np.int64), "uint8 or floats in .0, 1., got int64"),
        ([None], "a NoneType is no path"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(ValueError, match=message):
        VggtImageProcessor()(bad)


def test_bad_settings():
    with pytest.raises(ValueError, match="mode must be one of crop, pad; got 'stretch'"):
        VggtImageProcessor(mode="stretch")
    with pytest.raises(ValueError, match="multiple of patch_size 14, got 500"):
        VggtImageProcessor(size=500)
    with pytest.raises(ValueError, match="pixel_limit must hold one patch of 14², got 100"):
        Pi3ImageProcessor(pixel_limit=100)
    with pytest.raises(
        ValueError, match="unknown key 'sise' in VggtImageProcessor; known: mode, size, patch_size"
    ):
        VggtImageProcessor(sise=518)


@pytest.mark.parametrize("processor", PROCESSORS, ids=["crop", "pad", "pad-tiny", "pi3"])
def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored.pop("image_processor_type") == type(processor).__name__
    assert stored == vars(processor)
    again = type(processor).from_pretrained(tmp_path)
    assert vars(again) == vars(processor)
    key = processor.model_input_names[0]
    assert torch.equal(again(photo(30, 50))[key], processor(photo(30, 50))[key])


def test_load_with_a_changed_setting(tmp_path):
    VggtImageProcessor(size=112, patch_size=8).save_pretrained(tmp_path)
    assert VggtImageProcessor.from_pretrained(tmp_path, mode="pad").mode == "pad"
    assert VggtImageProcessor.from_pretrained(tmp_path, mode="pad").size == 112


def test_result_moves_and_copies_with_its_transform():
    out = VggtImageProcessor(size=16, patch_size=8)(photo(20, 30))
    moved = out.to(torch.float64)
    assert moved["images"].dtype == torch.float64
    for same in [moved, pickle.loads(pickle.dumps(out)), copy.deepcopy(out)]:
        assert torch.equal(same["images"], out["images"])
        assert torch.equal(same.pixel_transform, out.pixel_transform)
        assert same.photo_sizes == [(20, 30)]
