"""What maps of few pixels could show at best, against means and straight lines of numpy."""

import numpy as np
import pytest
import torch
from skimage.filters import sobel

from tests.tiny import stable_diffusion
from training.mask_limits import images_of, limits_of_parts, limits_of_structure, limits_of_words, main, map_sizes


SIDE = 16


def masks(count, seed):
    """Blots at random places, (count, 16, 16), neither empty nor everywhere."""
    noise = np.random.default_rng(seed).normal(size=(count, SIDE, SIDE))
    smooth = sum(np.roll(noise, (down, right), (1, 2)) for down in range(3) for right in range(3))
    return smooth > np.quantile(smooth, 0.85)


def enlarged(mask, size):
    """Means over cells, then straight lines between the cells' middles, flat beyond the outer ones."""
    cells = mask.reshape(size, SIDE // size, size, SIDE // size).mean((1, 3))
    middles, places = (np.arange(size) + 0.5) / size, (np.arange(SIDE) + 0.5) / SIDE
    rows = np.stack([np.interp(places, middles, row) for row in cells])
    return np.stack([np.interp(places, middles, column) for column in rows.T]).T


def iou(active, mask):
    return (active & mask).sum() / (active | mask).sum()


def shown(column):
    return [float(text) for text in column]


def test_parts_are_compared_over_all_images_above_one_threshold():
    given = {"eyes": masks(5, 0), "mouth": masks(5, 1)}
    table = limits_of_parts(given, sizes=(16, 8, 2))
    assert table.columns.tolist() == ["part", "16×16", "8×8", "2×2", "chance"]
    for row, mask in zip(table.to_dict("records"), given.values(), strict=True):
        assert row["16×16"] == "1.00"
        for size in (8, 2):
            maps = np.stack([enlarged(each, size) for each in mask])
            highest = np.sort(maps.ravel())[::-1]
            found = iou(maps > highest[mask.sum()], mask)
            assert float(row[f"{size}×{size}"]) == pytest.approx(found, abs=0.0051 + 1 / mask.sum())
        share = mask.mean()
        assert float(row["chance"]) == pytest.approx(share / (2 - share), abs=0.0051)


def test_words_are_compared_face_by_face_at_as_many_places():
    faces = [{"smiling": masks(1, seed)[0], "bangs": masks(1, seed + 10)[0]} for seed in range(3)]
    table = limits_of_words(faces, sizes=(8, 2, 2, 2))
    assert table["word"].tolist() == ["smiling", "bangs"]
    for word, value in zip(table["word"], shown(table.iloc[:, 1]), strict=True):
        found = []
        for face in faces:
            best = np.mean([enlarged(face[word], size) for size in (8, 2, 2, 2)], axis=0)
            active = np.zeros(SIDE * SIDE, dtype=bool)
            active[np.argsort(-best.ravel(), kind="stable")[: face[word].sum()]] = True
            found.append(iou(active.reshape(SIDE, SIDE), face[word]))
        assert value == pytest.approx(np.mean(found), abs=0.015)  # which of equal values is highest, rounding decides


def test_no_map_of_squares_correlates_more_than_their_means():
    """The multiple correlation with the squares, by least squares."""
    images = np.random.default_rng(2).normal(size=(4, 3, SIDE, SIDE)).cumsum(-1)
    table = limits_of_structure(images, sizes=(8, 4))
    grey = np.einsum("ichw,c->ihw", images, [0.299, 0.587, 0.114])
    edges = [sobel(image).ravel() for image in grey]
    for size in (8, 4):
        each = np.arange(SIDE) * size // SIDE
        of_square = (each[:, None] * size + each).ravel()[:, None] == np.arange(size**2)
        found = []
        for edge in edges:
            fitted = of_square @ np.linalg.lstsq(of_square.astype(float), edge, rcond=None)[0]
            found.append(np.corrcoef(fitted, edge)[0, 1])
        mean, low, high = (f"{value:.2f}" for value in (np.mean(found), min(found), max(found)))
        assert table[f"{size}×{size}"][0] == f"{mean} ({low}–{high})"
    assert table[""].tolist() == ["edges", "foreground"]


def test_images_are_of_the_label():
    first, second = (images_of("drawn-32", label, 1) for label in (0b1000, 0b0100))
    assert first.shape == (1, 3, 32, 32)
    assert np.abs(first - second).mean() > 0.05


def test_sizes_are_those_of_the_layers_that_look_at_text():
    unet = stable_diffusion().unet
    unet.register_to_config(sample_size=16)  # maps of 8 × 8 pixels, of 16 channels
    seen = []
    hooks = [
        module.to_q.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    size, channels = unet.config.sample_size, unet.config.in_channels
    text = torch.randn(1, 3, unet.config.cross_attention_dim)
    unet(torch.randn(1, channels, size, size), 5, encoder_hidden_states=text)
    for hook in hooks:
        hook.remove()
    assert [size**2 for size in map_sizes(unet)] == seen
    assert not any(module._forward_pre_hooks for module in unet.modules())


@pytest.mark.parametrize("option", ["--images", "--seeds", "--samples"])
def test_counts_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        main([option, "0"])
    assert f"argument {option}: expected an integer in 1.." in capsys.readouterr().err


def test_too_few_images_are_refused(capsys):
    assert main(["--images", "2", "--seeds", "1"]) == 2
    assert "Expected masks of at least three images" in capsys.readouterr().err
