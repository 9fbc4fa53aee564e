"""Tells what a drawn face shows by measuring colours where they must be: no network, and exact on drawn faces.

FILE=diffusers_xai/checkpoints/drawn_judge.py
diffusers-xai experiment shapley --checkpoint drawn-32 --judge $FILE:probabilities
diffusers-xai experiment gradient-attention --checkpoint drawn-32 --judge $FILE:soft_probabilities
diffusers-xai experiment patching --prompt "a woman" --other-prompt "a man" --judge $FILE:things
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffusers_xai.checkpoints.face_drawing import ATTRIBUTES, BACKGROUND_COLORS, HAIR_COLORS


Region = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _box(left: float, right: float, top: float, bottom: float) -> Region:
    return lambda x, y: (left <= x) & (x <= right) & (top <= y) & (y <= bottom)


def _oval(middle: float, half_width: float, half_height: float) -> Region:
    return lambda x, y: (x / half_width) ** 2 + ((y - middle) / half_height) ** 2 < 1


# Where a part is in every pose of the renderer, in its coordinates (from -1 to 1, downwards).
CROWN = _box(-0.25, 0.25, -0.66, -0.54)  # hair in every face
FOREHEAD = _box(-0.22, 0.22, -0.41, -0.27)  # below every hairline, above all brows
JAW = _oval(0.54, 0.36, 0.34)
MOUTH = _oval(0.5, 0.5, 0.36)
CORNER = _box(-0.97, -0.75, -0.97, -0.75)

HAIR_DISTANCE = 40.0  # of two colours in RGB (0 to 255): nearer than this to the hair's colour is hair
_STRONGEST = 6 / 1024  # of the picture's pixels, over which lips and teeth are measured
_SOFT = 10.0  # of colours (0 to 255): from such a distance to the threshold on, a soft answer is nearly sure
# Half way between the nearest measures of 3 000 faces that have the attribute and that do not.
THRESHOLDS = {"Bangs": -HAIR_DISTANCE, "Male": 0.2, "Smiling": 216.0, "Wearing_Lipstick": 140.0}


class DrawnFaceJudge:
    """Decides the attributes of pictures, drawn or generated, of any size from 16 pixels on.

    Each attribute is one measure and one threshold: `Bangs` the (negative) distance of the forehead's colour to the
    hair's, `Male` the share of the jaw that has the hair's colour, `Smiling` how white the whitest pixels around the
    mouth are, `Wearing_Lipstick` how far red and blue exceed green in the reddest ones.
    """

    attributes = ATTRIBUTES

    def measure(self, images: torch.Tensor) -> torch.Tensor:
        """The four measures minus their thresholds: above 0 the attribute is there.

        Args:
            images (`torch.Tensor` of shape `(image, 3, height, width)`): Float in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(image, 4)`, float32, columns as `attributes`.
        """
        pixels = _pixels(images)
        hair = _median(pixels, CROWN)
        to_hair = [np.linalg.norm(_inside(pixels, region) - hair[:, None], axis=2) for region in (FOREHEAD, JAW)]
        mouth = _inside(pixels, MOUTH)
        count = max(1, round(_STRONGEST * images.shape[2] * images.shape[3]))
        measures = {
            "Bangs": -np.median(to_hair[0], axis=1),
            "Male": (to_hair[1] < HAIR_DISTANCE).mean(axis=1),
            "Smiling": _strongest(mouth.min(axis=2), count),
            "Wearing_Lipstick": _strongest(mouth[..., 0] + mouth[..., 2] - 2 * mouth[..., 1], count),
        }
        return torch.tensor(
            np.stack([measures[name] - THRESHOLDS[name] for name in ATTRIBUTES], axis=1), dtype=torch.float32
        )

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Which attributes images (image, 3, height, width) in [-1, 1] show: bool (image, 4)."""
        return self.measure(images) > 0

    def hair_colors(self, images: torch.Tensor) -> list[str]:
        """The name in `HAIR_COLORS` that is nearest to each image's hair."""
        return _nearest(_median(_pixels(images), CROWN), HAIR_COLORS)

    def background_colors(self, images: torch.Tensor) -> list[str]:
        """The name in `BACKGROUND_COLORS` that is nearest to each image's upper left corner."""
        return _nearest(_median(_pixels(images), CORNER), BACKGROUND_COLORS)


def probabilities(images: torch.Tensor) -> torch.Tensor:
    """What a `judge` of `drawn-32` tells: 1 where an attribute is seen, else 0."""
    return DrawnFaceJudge().predict(images).float()


def soft_probabilities(images: torch.Tensor) -> torch.Tensor:
    """The same by differentiable operations, as `gradient-attention` takes it: not all or nothing.

    Means stand for medians, and how far each measure lies from its threshold is told by the logistic function.

    Args:
        images (`torch.Tensor` of shape `(image, 3, height, width)`): Float in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(image, 4)`, float32 in [0, 1], columns as [`DrawnFaceJudge`]'s `attributes`.
    """
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    hair = _inside(pixels, CROWN).mean(1, keepdim=True)
    forehead, jaw = (_inside(pixels, region) for region in (FOREHEAD, JAW))
    mouth = _inside(pixels, MOUTH)
    count = max(1, round(_STRONGEST * images.shape[2] * images.shape[3]))
    from_hair = (jaw - hair).norm(dim=2)
    measures = {
        "Bangs": -(forehead.mean(1, keepdim=True) - hair).norm(dim=2)[:, 0],
        "Male": torch.sigmoid((HAIR_DISTANCE - from_hair) / _SOFT).mean(1),
        "Smiling": mouth.amin(2).topk(count).values.mean(1),
        "Wearing_Lipstick": (mouth[..., 0] + mouth[..., 2] - 2 * mouth[..., 1]).topk(count).values.mean(1),
    }
    scales = {name: _SOFT if name != "Male" else 0.05 for name in ATTRIBUTES}
    return torch.stack(
        [torch.sigmoid((measures[name] - THRESHOLDS[name]) / scales[name]) for name in ATTRIBUTES], dim=1
    )


def things(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same by the captions' words, hair and background too: what `--judge` takes for pipelines of prompts."""
    judge = DrawnFaceJudge()
    seen = dict(zip(("bangs", "man", "smiling", "lipstick"), judge.predict(images).float().T, strict=True))
    for names, palette, what in (
        (judge.hair_colors(images), HAIR_COLORS, "hair"),
        (judge.background_colors(images), BACKGROUND_COLORS, "background"),
    ):
        seen |= {f"{color} {what}": torch.tensor([float(name == color) for name in names]) for color in palette}
    return seen


def _pixels(images: torch.Tensor) -> np.ndarray:
    """(image, height, width, 3) from 0 to 255."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()


def _inside(pixels: Any, region: Region) -> Any:
    """The pixels whose middle is in the region, (image, pixel, 3)."""
    y, x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in pixels.shape[1:3])
    return pixels[:, region(x[None, :], y[:, None])]


def _median(pixels: np.ndarray, region: Region) -> np.ndarray:
    return np.median(_inside(pixels, region), axis=1)


def _strongest(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` largest of values (image, pixel)."""
    return np.sort(values, axis=1)[:, -count:].mean(axis=1)


def _nearest(colors: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> list[str]:
    distances = np.linalg.norm(colors[:, None] - np.array(list(palette.values()), dtype=float), axis=2)
    return [list(palette)[i] for i in distances.argmin(axis=1)]
