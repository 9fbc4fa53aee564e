import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.draw import polygon2mask

from diffusers_xai.measures import (
    as_mask,
    mask_from_box,
    mask_from_png,
    mask_from_polygon,
    mask_from_runs,
    mask_to_runs,
    max_channel,
)


def test_arrays_tensors_and_files_mean_the_same(tmp_path):
    mask = np.random.default_rng(0).random((6, 9)) > 0.5
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for given in (mask, mask.tolist(), torch.from_numpy(mask), tmp_path / "mask.png", str(tmp_path / "mask.png")):
        got = as_mask(given, (6, 9))
        assert got.dtype == bool
        assert np.array_equal(got, mask)


def test_a_png_counts_bright_opaque_pixels(tmp_path):
    pixels = np.zeros((2, 3, 4), dtype="uint8")
    pixels[0] = [[255, 255, 255, 255], [255, 255, 255, 20], [20, 20, 20, 255]]
    pixels[1] = [[200, 200, 200, 128], [0, 0, 0, 0], [0, 255, 0, 255]]  # pure green has a luminance of 0.59
    Image.fromarray(pixels, "RGBA").save(tmp_path / "drawn.png")
    assert mask_from_png(tmp_path / "drawn.png").tolist() == [[True, False, False], [True, False, True]]


def test_a_box_excludes_its_right_and_bottom():
    mask = mask_from_box((2, 1, 5, 3), (4, 6))
    expected = np.zeros((4, 6), dtype=bool)
    expected[1:3, 2:5] = True
    assert np.array_equal(mask, expected)
    assert mask_from_box((0, 0, 6, 4), (4, 6)).all()


def test_a_polygon_is_filled():
    corners = [(3, 2), (28, 6), (17, 27)]
    mask = mask_from_polygon(corners, (32, 40))
    inside = polygon2mask((32, 40), [(y, x) for x, y in corners])
    assert mask.shape == (32, 40)
    assert (inside & ~mask).sum() == 0  # all that scikit-image counts as inside, and the outline
    assert (mask & ~inside).sum() < 60
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
    with pytest.raises(ValueError, match=r"black.png: expected a mask with at least one .*Bright, opaque pixels"):
        mask_from_png(path)
    Image.new("L", (8, 8), 255).save(path)
    with pytest.raises(ValueError, match=r"black.png: .* = \(4, 4\), got \(8, 8\)"):
        mask_from_png(path, (4, 4))
    path.write_text("no picture")
    with pytest.raises(OSError, match="cannot identify image file"):
        mask_from_png(path)
    with pytest.raises(FileNotFoundError):
        as_mask(tmp_path / "missing.png")
