import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_xai.measures import (
    as_mask,
    mask_from_box,
    mask_from_png,
    mask_from_polygon,
    mask_from_runs,
    mask_to_runs,
    max_channel,
)
from diffusers_xai.measures.masks import region_or_middle


def test_arrays_tensors_and_files_mean_the_same(tmp_path):
    mask = np.random.default_rng(0).random((6, 9)) > 0.5
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for given in (mask, mask.tolist(), torch.from_numpy(mask), tmp_path / "mask.png", str(tmp_path / "mask.png")):
        got = as_mask(given, (6, 9))
        assert got.dtype == bool
        assert np.array_equal(got, mask)


PAINTED = mask_from_box((4, 5, 8, 8), (12, 16))


def painting(mode, page, paint, mask=PAINTED):
    """A picture of colour `page` in which the mask's pixels have the colour `paint`."""
    image = Image.new(mode, mask.shape[::-1], page)
    image.paste(Image.new(mode, image.size, paint), mask=Image.fromarray(mask))
    return image


def numbers(background, paint, dtype):
    return Image.fromarray(np.where(PAINTED, paint, background).astype(dtype))


def label_map(colours):
    """A picture of palette indices, 0 and 1 for the mask, as segmentation data sets keep them."""
    image = Image.fromarray(PAINTED.astype(np.uint8)).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def upscaled(image, filter):
    return image.resize((16 * 8, 12 * 8), filter)


@pytest.mark.parametrize(
    "image",
    [
        painting("L", 0, 255),
        painting("1", 0, 1),
        painting("RGB", "black", "white"),
        painting("LA", (0, 255), (255, 255)),
        painting("RGB", "white", "red"),
        painting("RGB", "white", "yellow"),
        painting("RGB", "black", "navy"),
        painting("RGBA", (255, 255, 255, 255), (0xD5, 0x5E, 0, 255)),
        painting("RGBA", (0, 0, 0, 0), (0xD5, 0x5E, 0, 255)),
        painting("RGBA", (255, 255, 255, 0), (0, 0, 0, 255)),
        painting("RGBA", (0, 0, 0, 0), (255, 255, 255, 200)),
        painting("LA", (0, 0), (128, 255)),
        painting("RGBA", (0xD5, 0x5E, 0, 90), (0xD5, 0x5E, 0, 200)),  # less than half opaque
        painting("RGB", "white", "green").convert("P"),
        label_map([(0, 0, 0), (128, 0, 0)]),
        numbers(0, 1, np.uint8),
        numbers(0, 7, np.uint8),
        numbers(0, 1, np.uint16),
        numbers(0, 65535, np.uint16),
        numbers(0, 1, np.int32),
        numbers(0.0, 1.0, np.float32),
        numbers(3, 250, np.uint8),
        numbers(900, 64000, np.uint16),
    ],
    ids=lambda image: f"{image.mode} {image.getpixel((0, 0))} {image.getpixel((4, 5))}",
)
def test_what_is_painted_counts(tmp_path, image):
    image.save(tmp_path / "mask.tif")  # keeps every mode
    assert np.array_equal(mask_from_png(tmp_path / "mask.tif", (12, 16)), PAINTED)


@pytest.mark.parametrize(("page", "paint"), [("white", "red"), ("black", "white"), ("black", "lime")])
def test_soft_edges_and_jpeg_count_by_half(tmp_path, page, paint):
    image = upscaled(painting("RGB", page, paint), Image.Resampling.BICUBIC)
    image.save(tmp_path / "mask.jpg", quality=90)
    expected = np.kron(PAINTED, np.ones((8, 8), dtype=bool))
    assert (mask_from_png(tmp_path / "mask.jpg") ^ expected).sum() < 0.15 * expected.sum()


def test_a_mask_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # upright, the stored picture's left column is the top row
    painting("L", 0, 255, mask_from_box((0, 0, 1, 12), (12, 16))).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(mask_from_png(tmp_path / "mask.png"), mask_from_box((0, 0, 12, 1), (16, 12)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (painting("RGB", "white", "black"), "painted all round and a hole"),
        (painting("RGBA", (9, 9, 9, 255), (0, 0, 0, 0)), "painted all round and a hole"),
        (painting("L", 255, 128), "got 2 greys from 128 to 255"),
        (painting("L", 1, 2), "got 2 greys from 1 to 2"),
        (painting("RGB", "gray", "red"), "several colours"),
        (painting("RGB", "blue", "red"), "several colours"),
        (Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16) // 48), "got 4 greys from 0 to 3"),
        (Image.radial_gradient("L"), "got 256 greys"),
        (Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)), "several colours"),
    ],
)
def test_a_picture_that_does_not_tell_is_refused(tmp_path, image, message):
    image.save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=rf"mask.png: expected white on black, one colour .*{message}"):
        mask_from_png(tmp_path / "mask.png")


def test_colours_and_a_third_one_are_refused(tmp_path):
    image = painting("RGB", "white", "red")
    image.paste((0, 0, 255), (9, 5, 12, 8))
    image.save(tmp_path / "two.png")
    with pytest.raises(ValueError, match="several colours"):
        mask_from_png(tmp_path / "two.png")
    layer = painting("RGBA", (0, 0, 0, 0), (255, 255, 255, 255))
    layer.paste((0, 0, 0, 255), (9, 5, 12, 8))
    layer.save(tmp_path / "layer.png")
    with pytest.raises(ValueError, match="black and white pixels on transparency"):
        mask_from_png(tmp_path / "layer.png")


def test_a_box_excludes_its_right_and_bottom():
    mask = mask_from_box((2, 1, 5, 3), (4, 6))
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 2:5] = True
    assert np.array_equal(mask, expected)
    assert mask_from_box((0, 0, 6, 4), (4, 6)).all()


def test_a_polygon_is_filled():
    corners = [(3, 2), (28, 6), (17, 27)]
    mask = mask_from_polygon(corners, (32, 40))
    # A pixel is inside where it lies on the same side of all three edges.
    y, x = np.mgrid[:32, :40]
    sides = [(x - x0) * (y1 - y0) - (y - y0) * (x1 - x0) for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]])]
    assert (mask == (np.stack(sides) <= 0).all(axis=0)).all()
    square = mask_from_polygon([(1, 2), (3, 2), (3, 4), (1, 4)], (6, 6))
    assert np.argwhere(square).tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2, 3)]
    assert mask_from_polygon([(-10, -10), (60, -10), (60, 60), (-10, 60)], (8, 8)).all()


@pytest.mark.parametrize("first", [False, True])
def test_runs_go_there_and_back(first):
    mask = np.random.default_rng(3).random((7, 5)) > 0.7
    mask[0, 0] = first
    data = json.loads(json.dumps(mask_to_runs(mask)))
    assert np.array_equal(mask_from_runs(data), mask)
    assert mask_to_runs(np.array([[False, True], [True, False]])) == {"size": [2, 2], "runs": [1, 2, 1]}


def test_a_path_is_a_mask_wherever_one_is_taken(tmp_path):
    values = torch.zeros(1, 2, 4, 4)
    values[0, 0, :, 0] = 5
    values[0, 1, :, 3] = 1
    Image.fromarray(mask_from_box((3, 0, 4, 4), (4, 4))).save(tmp_path / "right.png")
    assert max_channel(values).tolist() == [0]
    assert max_channel(values, mask=tmp_path / "right.png").tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_mask(np.ones((4, 4), bool), (8, 8)), r"size \(height, width\) = \(8, 8\), got \(4, 4\). Draw"),
        (lambda: as_mask(np.zeros((4, 4), bool)), r"at least one True pixel, got an empty one of \(4, 4\)"),
        (lambda: as_mask(np.ones((4, 4))), r"dtype bool, got shape \(4, 4\) and float64. Compare .* `mask > 0.5`"),
        (lambda: as_mask(np.ones((1, 4, 4), bool)), r"shape \(height, width\) .*, got shape \(1, 4, 4\)"),
        (lambda: mask_from_box((0, 0, 9, 4), (4, 8)), r"right <= 8 and 0 <= top < bottom <= 4, got \(0, 0, 9, 4\)"),
        (lambda: mask_from_box((2, 0, 2, 4), (4, 8)), r"got \(2, 0, 2, 4\)"),
        (lambda: mask_from_box((0.5, 0, 2, 4), (4, 8)), r"whole pixels, got \(0.5, 0, 2, 4\)"),
        (lambda: mask_from_box((0, 0, 2), (4, 8)), r"whole pixels, got \(0, 0, 2\)"),
        (lambda: mask_from_polygon([(0, 0), (1, 1)], (4, 4)), "at least three points"),
        (lambda: mask_from_polygon([(9, 9), (12, 9), (9, 12)], (8, 8)), r"inside an image of 8 x 8 pixels"),
    ],
)
def test_what_is_no_mask_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pictures_without_a_mask_are_refused(tmp_path):
    path = tmp_path / "black.png"
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(ValueError, match=r"black.png: Expected a mask with at least one True pixel"):
        mask_from_png(path)
    Image.new("L", (8, 8), 255).save(path)
    with pytest.raises(ValueError, match=r"black.png: .* = \(4, 4\), got \(8, 8\)"):
        mask_from_png(path, (4, 4))
    path.write_text("no picture")
    with pytest.raises(OSError, match="black.png: not a readable picture: cannot identify image file"):
        mask_from_png(path)
    path.write_bytes(b"P6\n20 2")  # for which Pillow raises a ValueError
    with pytest.raises(OSError, match="black.png: not a readable picture: Reached EOF"):
        as_mask(path)
    with pytest.raises(FileNotFoundError):
        as_mask(tmp_path / "missing.png")


def test_the_region_by_default_is_the_middle_quarter_of_each_side():
    expected = np.zeros((16, 8), bool)
    expected[6:10, 3:5] = True
    np.testing.assert_array_equal(region_or_middle(None, (16, 8)), expected)
    np.testing.assert_array_equal(region_or_middle(~expected, (16, 8)), ~expected)
