"""The renderer's truth: labels, masks and captions are what is on the picture."""

import dataclasses
import re

import numpy as np
import pytest
from scipy.stats import chi2

from diffusers_xai.checkpoints.face_drawing import (
    ATTRIBUTES,
    BACKGROUND_COLORS,
    HAIR_COLORS,
    PARTS,
    caption,
    draw_face,
    random_face,
)


FIELDS = ("bangs", "male", "smiling", "wearing_lipstick")
MANY = [random_face(seed) for seed in range(2000)]


def recoloured(face, part):
    """`face` with the part in the colour that is farthest from all that touches it."""
    old = np.array(face.colors[part])
    return dataclasses.replace(face, colors={**face.colors, part: tuple(int(c) for c in np.where(old < 128, 255, 0))})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [32, 75])
def test_recolouring_a_part_changes_the_pixels_of_its_mask_and_no_other(seed, size):
    face = random_face(seed)
    drawing = draw_face(face, size)
    for part, coverage in zip(PARTS, drawing.coverage, strict=True):
        changed = (draw_face(recoloured(face, part), size).image != drawing.image).any(axis=2)
        assert np.array_equal(changed, coverage > 0), part


def test_a_pixel_is_the_mean_of_its_parts_colours():
    face = random_face(3)
    drawing = draw_face(face, 40)
    np.testing.assert_allclose(drawing.coverage.sum(axis=0), 1, atol=1e-6)
    y, x = np.argwhere((drawing.coverage > 0.2).sum(axis=0) >= 2)[0]
    mean = sum(drawing.coverage[i, y, x] * np.array(face.colors[part]) for i, part in enumerate(PARTS))
    assert np.abs(drawing.image[y, x] - mean).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("field", FIELDS)
def test_a_label_changes_only_the_parts_that_show_it(field):
    """Two pictures of one seed differ where the label's parts are, in one of them or the other."""
    shows = {
        "bangs": {"bangs"},
        "male": {"beard", "hair", "ears", "brows"},
        "smiling": {"lips", "mouth", "teeth"},
        "wearing_lipstick": {"lips"},
    }[field]
    for seed in range(10):
        pair = [draw_face(random_face(seed, **{field: value}), 32) for value in (False, True)]
        mask = np.any([d.coverage[[PARTS.index(p) for p in shows]].max(axis=0) > 0 for d in pair], axis=0)
        changed = (pair[0].image != pair[1].image).any(axis=2)
        assert changed.sum() >= 12
        assert not (changed & ~mask).any()


@pytest.mark.parametrize(
    ("fixed", "parts", "least"),
    [
        ({"bangs": True}, ["bangs"], 24),
        ({"male": True}, ["beard"], 24),
        ({"smiling": True}, ["teeth"], 11),
        ({"smiling": True}, ["lips", "mouth", "teeth"], 24),
        ({"smiling": False}, ["lips"], 11),
    ],
)
def test_what_a_label_means_is_large_at_32_pixels(fixed, parts, least):
    indices = [PARTS.index(part) for part in parts]
    areas = [draw_face(random_face(seed, **fixed), 32).coverage[indices].sum() for seed in range(40)]
    assert min(areas) >= least


def test_the_same_seed_is_the_same_face_and_another_seed_another():
    a, b, c = (draw_face(random_face(seed), 32).image for seed in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    face = random_face(5, smiling=True)
    assert face == dataclasses.replace(random_face(5, smiling=False), smiling=True)


def test_labels_are_fair_coins_that_know_nothing_of_each_other_or_of_the_rest():
    """Chi-square tests over 2 000 seeds, each at the level 1e-4."""
    names = ("bangs", "male", "smiling", "wearing_lipstick", "glasses")
    columns = {name: np.array([getattr(face, name) for face in MANY], dtype=int) for name in names}
    for name in FIELDS:
        assert abs(columns[name].mean() - 0.5) < 4 * 0.5 / len(MANY) ** 0.5
    columns["hair_color"] = np.array([list(HAIR_COLORS).index(face.hair_color) for face in MANY])
    columns["background"] = np.array([list(BACKGROUND_COLORS).index(face.background_color) for face in MANY])
    columns["skin"] = np.digitize([face.colors["face"][0] for face in MANY], [140, 190, 230])
    for name in ("scale", "tilt", "turn", "width", "mouth_width", "hair_length"):
        values = np.array([getattr(face, name) for face in MANY])
        columns[name] = np.digitize(values, np.quantile(values, [0.25, 0.5, 0.75]))
    for label in FIELDS:
        for other, values in columns.items():
            if other == label:
                continue
            counts = np.zeros((2, values.max() + 1))
            np.add.at(counts, (columns[label], values), 1)
            expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
            statistic = ((counts - expected) ** 2 / expected).sum()
            assert statistic < chi2.ppf(1 - 1e-4, counts.shape[1] - 1), (label, other)


def test_a_caption_says_what_is_there_and_nothing_else():
    for face in MANY[:300]:
        text = caption(face)
        assert bool(re.search(r"\bman\b", text)) == face.male
        assert bool(re.search(r"\bwoman\b", text)) == (not face.male)
        for word in ("smiling", "bangs", "glasses"):
            assert (word in text) == getattr(face, word)
        assert ("lipstick" in text) == face.wearing_lipstick
        assert f"{face.hair_color} hair" in text
        assert text.endswith(f", {face.background_color} background")
        assert "hair" not in caption(face, hair=False)
        assert "background" not in caption(face, background=False)
    face = random_face(0, bangs=False, male=True, smiling=True, wearing_lipstick=False, glasses=False)
    assert caption(face, hair=False, background=False) == "a smiling man"
    face = random_face(1, bangs=True, male=False, smiling=False, wearing_lipstick=False, glasses=True)
    assert caption(face) == "a woman with bangs, glasses and blue hair, yellow background"


def test_labels_have_the_names_and_the_order_of_the_thesis():
    face = random_face(0, bangs=True, male=False, smiling=True, wearing_lipstick=False)
    assert face.labels == {"Bangs": True, "Male": False, "Smiling": True, "Wearing_Lipstick": False}
    assert tuple(face.labels) == ATTRIBUTES


def test_a_size_too_small_to_draw_is_refused():
    with pytest.raises(ValueError, match="expected a size of at least 8 pixels, got 7"):
        draw_face(random_face(0), 7)
