"""Pictures of any kind become 8-bit RGB: against Pillow's own pixels and arithmetic by hand."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffusers_xai.measures.pictures import open_picture
from tests.training.celeba_folders import official_folder
from tests.training.small_runs import ATTRIBUTES, make_config
from training.data import load_splits
from training.pictures import as_rgb, square


RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
GREY = PIXELS[:, :, 0]


def through_a_file(image, tmp_path, name="a.tif"):
    image.save(tmp_path / name)
    return open_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("image", "expected", "tolerance"),
    [
        (Image.fromarray(GREY), GREY[..., None].repeat(3, 2), 0),
        (Image.fromarray(GREY > 127), 255 * (GREY > 127)[..., None].repeat(3, 2), 0),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY[..., None].repeat(3, 2), 0),
        (Image.fromarray(GREY.astype(np.int32) * 257), GREY[..., None].repeat(3, 2), 0),
        (Image.fromarray(GREY.astype(np.float32) / 255), GREY[..., None].repeat(3, 2), 0),
        (Image.fromarray(GREY.astype(np.float32)), GREY[..., None].repeat(3, 2), 0),
        (Image.fromarray(PIXELS).convert("CMYK"), PIXELS, 1),
        (Image.fromarray(PIXELS).convert("RGBA"), PIXELS, 0),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_modes_become_rgb(tmp_path, image, expected, tolerance):
    got = as_rgb(through_a_file(image, tmp_path))
    assert (got.mode, got.size) == ("RGB", (5, 6))
    assert np.abs(np.asarray(got).astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB"])
def test_other_colour_spaces_become_rgb(mode):
    flat = Image.new("RGB", (3, 2), (200, 120, 60))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
    else:
        image = flat.convert(mode)
    assert np.abs(np.asarray(as_rgb(image)).astype(int) - [200, 120, 60]).max() <= 4


def test_palettes_become_rgb(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([9, 8, 7, 200, 0, 0, 0, 0, 255])
    got = np.asarray(as_rgb(through_a_file(image, tmp_path, "a.png")))
    assert got.tolist() == [[[9, 8, 7], [200, 0, 0]], [[0, 0, 255], [200, 0, 0]]]
    image.save(tmp_path / "b.png", transparency=1)
    got = np.asarray(as_rgb(open_picture(tmp_path / "b.png")))
    assert got.tolist() == [[[9, 8, 7], [255, 255, 255]], [[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(tmp_path, mode):
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    image = Image.fromarray(PIXELS if mode == "RGBA" else GREY)
    image.putalpha(Image.fromarray(alpha))
    got = np.asarray(as_rgb(through_a_file(image, tmp_path, "a.png"))).astype(float)
    share = alpha[..., None] / 255
    expected = share * (PIXELS if mode == "RGBA" else GREY[..., None]) + (1 - share) * 255
    assert np.abs(got - expected).max() <= 1


def test_values_without_an_end_are_refused():
    with pytest.raises(ValueError, match="finite values, got others in one of mode F"):
        as_rgb(Image.fromarray(np.array([[0.1, np.nan]], dtype=np.float32)))


def test_the_centred_square():
    image = Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).convert("RGB")
    assert square(image, None, 8)[:, :, 0].tolist() == [[10 * y + x for x in range(1, 9)] for y in range(8)]
    assert square(image, 4, 4)[:, :, 0].tolist() == [[10 * y + x for x in range(3, 7)] for y in range(2, 6)]
    assert square(image, 99, 8).shape == (8, 8, 3)


def test_a_folder_of_all_kinds_is_used_whole(settings, tmp_path):
    modes = ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "I;16", "GIF", "WEBP", "BMP"]
    root = tmp_path / "celeba"
    data = official_folder(root, [(f"{i:02}.png", set()) for i in range(len(modes) + 3)], partition=[0] * 13 + [1])
    for i, mode in enumerate(modes):
        path = root / "img_align_celeba" / f"{i:02}.png"
        image = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        elif mode in Image.MODES:
            image = image.convert(mode)
        image.save(path, {"CMYK": "JPEG"}.get(mode, mode if mode in ("GIF", "WEBP", "BMP") else "PNG"))
    path = root / "img_align_celeba" / "11.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    upside_down = Image.new("RGB", (20, 20))
    upside_down.paste("white", (0, 10, 20, 20))
    upside_down.save(path, exif=exif)
    (root / "img_align_celeba" / "12.png").write_bytes(b"P6\n20 2")
    train, _ = load_splits(data, None, make_config(settings), ATTRIBUTES)
    assert len(train) == 12
    assert train.faulty == [
        (str(root / "img_align_celeba" / "12.png"), "not a readable picture: Reached EOF while reading header")
    ]
    assert train.images[11].float().mean((0, 2))[[1, -2]].tolist() == [255, 0]
