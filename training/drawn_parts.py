"""Drawn faces with the exact masks of their parts, for `diffusers-xai experiment concepts`.

diffusers-xai experiment concepts --checkpoint drawn-32 --concepts training/drawn_parts.py:parts
"""

import sys
from pathlib import Path

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, it finds its own package

from training.face_drawing import PARTS, draw_face, random_face  # noqa: E402


FIRST_SEED = 30_000  # of the validation split: no face of the training
CONCEPTS = {
    "background": ("background",),
    "hair": ("hair",),
    "bangs": ("bangs",),
    "brows": ("brows",),
    "eyes": ("eyes", "irises", "pupils"),
    "glasses": ("glasses",),
    "nose": ("nose",),
    "mouth": ("lips", "mouth", "teeth"),
    "beard": ("beard",),
}
LEAST_SHARE = 0.25  # of a pixel, that a part must cover to count


def parts(samples: torch.Tensor) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Drawn faces, as many and as large as `samples`, and where their parts are.

    Args:
        samples (`torch.Tensor` of shape `(image, 3, height, width)`): Their size alone counts.

    Returns:
        `tuple`: faces of that shape in [-1, 1], and the masks by name, bool `(image, height, width)`.
    """
    drawings = [draw_face(random_face(FIRST_SEED + number), samples.shape[-1]) for number in range(len(samples))]
    coverage = np.stack([drawing.coverage for drawing in drawings], axis=1)  # (part, image, height, width)
    masks = {
        name: coverage[[PARTS.index(part) for part in members]].sum(0) >= LEAST_SHARE
        for name, members in CONCEPTS.items()
    }
    images = np.stack([drawing.image for drawing in drawings]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1), masks
