"""How well maps agree with masks, and whether that is more than their usual places explain."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Overlap:
    """Agreement of units with concepts; every array of shape `(concept, unit)`.

    Attributes:
        iou (`np.ndarray`): Intersection over union of the unit's highest values with the masks, in [0, 1].
        p_value (`np.ndarray`): That masks dealt to the images at random would agree as well; NaN of a unit whose
            agreement does not depend on the dealing.
        null_iou, null_p_value (`np.ndarray`): The same of masks that were dealt at random.
    """

    iou: np.ndarray
    p_value: np.ndarray
    null_iou: np.ndarray
    null_p_value: np.ndarray


def overlap(maps: np.ndarray, masks: np.ndarray, order: np.ndarray) -> Overlap:
    """Intersection over union of each unit with each concept's masks over many images, and its test.

    A unit is active where it is above its own quantile over all images and pixels, at which as many pixels are active
    as the masks have: a unit that knows nothing then gets f / (2 − f), where f is the masks' share of the pixels.

    The test deals the masks to the images at random. Whatever comes from where a concept usually lies stays the same;
    only what a unit knows of its own image is lost. Mean, variance and skewness of the intersection over all dealings
    are exact (Hoeffding 1951, *A Combinatorial Central Limit Theorem*), its tail is that of Pearson's third type: of a
    part that few images have, a normal one would be too thin.

    Source: Bau et al. 2019, *GAN Dissection*, section 3.1, there with a threshold of the most mutual information.

    Args:
        maps (`np.ndarray` of shape `(image, unit, height, width)`): The units' activations, at the masks' size.
        masks (`np.ndarray` of shape `(concept, image, height, width)`, bool): Where the concepts are.
        order (`np.ndarray` of shape `(image,)`, int): The dealing of `null_iou`: image i gets the mask `order[i]`.

    Returns:
        [`Overlap`]: Of every concept and unit.

    Raises:
        ValueError: If a concept's masks are empty or cover everything, or there are fewer than three images.
    """
    images, units = maps.shape[:2]
    counts = masks.sum((1, 2, 3))
    pixels = masks[0].size
    if images < 3 or not ((counts > 0) & (counts < pixels)).all():
        raise ValueError(
            f"Expected masks of at least three images that are neither empty nor everywhere, got {counts.tolist()} of"
            f" {pixels} pixels in {images} images."
        )
    values = np.ascontiguousarray(maps.swapaxes(0, 1)).reshape(units, images, -1)
    places = pixels - counts - 1
    thresholds = np.partition(values.reshape(units, -1), np.unique(places), axis=1)[:, places]
    found = [
        _of_one(values > threshold[:, None, None], mask.reshape(images, -1), order)
        for threshold, mask in zip(thresholds.T, masks, strict=True)
    ]
    return Overlap(*(np.stack(arrays) for arrays in zip(*found, strict=True)))


def _of_one(active: np.ndarray, masks: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of [`Overlap`] of one concept.

    Args:
        active (`(unit, image, pixel)`, bool): Where the units are active.
        masks (`(image, pixel)`, bool): The concept.
        order (`(image,)`, int): A dealing.
    """
    images = len(masks)
    ever = masks.any(0)
    # [unit, i, j]: pixels where the unit is active in image i, and image j has the concept.
    shared = (active[:, :, ever].astype(np.float32) @ masks[:, ever].T.astype(np.float32)).astype(np.float64)
    mean = shared.sum((1, 2)) / images
    centred = shared - shared.mean(1, keepdims=True) - shared.mean(2, keepdims=True) + mean[:, None, None] / images
    deviation = np.sqrt((centred**2).sum((1, 2)) / (images - 1))
    third = (centred**3).sum((1, 2)) * images / ((images - 1) * (images - 2))
    total = active.sum((1, 2)) + masks.sum()

    def agreement(dealt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = shared[:, np.arange(images), dealt].sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(deviation > 1e-9, (inside - mean) / deviation, np.nan)
            skew = np.where(deviation > 1e-9, third / deviation**3, 0)
        return inside / (total - inside), stats.pearson3.sf(score, skew)

    return *agreement(np.arange(images)), *agreement(order)
