"""Agreement of maps with masks, against counting, and its test against dealing masks many times."""

import numpy as np
import pytest
from scipy.stats import binom

from diffusers_xai.analysis import Overlap, benjamini_hochberg, overlap


def places(rng, images=24, size=8):
    """Masks of one square, near the middle, and maps of units: the concept itself, its usual place, and noise."""
    masks = np.zeros((images, size, size), dtype=bool)
    for mask, (top, left) in zip(masks, rng.integers(1, 5, (images, 2)), strict=True):
        mask[top : top + 3, left : left + 3] = True
    usual = np.broadcast_to(masks.mean(0), masks.shape) + 1e-3 * rng.random(masks.shape)
    noise = rng.random((5, *masks.shape))
    return masks, np.stack([masks + 0.1 * rng.random(masks.shape), usual, *noise], axis=1)


def one(maps, masks, order):
    """The agreement with one concept, beside another one."""
    found = overlap(maps, np.stack([masks, np.eye(8, dtype=bool)[None].repeat(len(masks), 0)]), order)
    return Overlap(*(values[0] for values in vars(found).values()))


def test_iou_is_that_of_counting():
    rng = np.random.default_rng(0)
    masks, maps = places(rng)
    order = rng.permutation(len(masks))
    found = one(maps, masks, order)
    for unit in range(maps.shape[1]):
        values = maps[:, unit]
        active = values > np.sort(values.ravel())[-masks.sum() - 1]
        assert active.sum() == masks.sum()
        for iou, dealt in ((found.iou, masks), (found.null_iou, masks[order])):
            assert iou[unit] == pytest.approx((active & dealt).sum() / (active | dealt).sum())
    assert found.iou[0] == 1
    share = masks.mean()
    assert found.iou[2:].mean() == pytest.approx(share / (2 - share), abs=0.02)


def test_p_values_are_those_of_dealing_the_masks():
    rng = np.random.default_rng(1)
    masks, maps = places(rng)
    maps[:, 2] += 0.05 * masks  # a weak unit
    found = one(maps, masks, np.arange(len(masks)))
    dealt = np.array([one(maps, masks, rng.permutation(len(masks))).null_iou for _ in range(600)])
    by_dealing = (dealt > found.iou).mean(0) + (dealt == found.iou).mean(0) / 2  # counts tie
    assert found.p_value[0] < 1e-9
    assert found.p_value[1] > 0.05  # its usual place explains it
    np.testing.assert_allclose(found.p_value[1:], by_dealing[1:], atol=0.05)


def test_permuted_masks_give_few_discoveries():
    rng = np.random.default_rng(2)
    repeats = 600
    false, found = [], []
    for _ in range(repeats):
        masks, maps = places(rng)
        result = overlap(maps, masks[None], rng.permutation(len(masks)))
        false.append((benjamini_hochberg(result.null_p_value[0]) <= 0.05).any())
        found.append(benjamini_hochberg(result.p_value[0]) <= 0.05)
    # Every discovery is false here, so their share is how often there is one: of 5 %, more are found in 1 % of cases.
    assert sum(false) <= binom.ppf(0.99, repeats, 0.05)  # 7.2 %
    assert np.array(found)[:, 0].all()


def test_parts_that_few_images_have():
    """Their intersections are skewed: the tail of p-values is that of dealing the masks, not the normal one."""
    rng = np.random.default_rng(4)
    masks, maps = places(rng, images=20)
    masks[3:] = False
    maps = maps[:, 2:] + 3 * (rng.random((20, 5, 1, 1)) < 0.15)  # units that are active in few images
    p_values = np.concatenate([one(maps, masks, rng.permutation(20)).null_p_value for _ in range(800)])
    assert np.mean(p_values < 0.01) < 0.016


def test_constant_units_and_empty_masks():
    rng = np.random.default_rng(3)
    masks, maps = places(rng)
    maps[:, 3] = 0
    found = one(maps, masks, np.arange(len(masks)))
    assert found.iou[3] == 0
    assert np.isnan(found.p_value[3])
    for bad in (np.zeros_like(masks), np.ones_like(masks)):
        with pytest.raises(ValueError, match="neither empty nor everywhere"):
            one(maps, bad, np.arange(len(masks)))
