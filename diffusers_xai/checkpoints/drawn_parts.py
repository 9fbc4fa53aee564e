"""Drawn faces with the exact masks of their parts, for the experiments `concepts` and `words`.

FILE=diffusers_xai/checkpoints/drawn_parts.py
diffusers-xai experiment concepts --checkpoint drawn-32 --concepts $FILE:parts
diffusers-xai experiment words --prompt "a smiling woman with blond hair" --concepts $FILE:words
"""

import numpy as np
import torch

from diffusers_xai.checkpoints.face_drawing import (
    BACKGROUND_COLORS,
    HAIR_COLORS,
    PARTS,
    Face,
    draw_face,
    random_face,
)


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
WORDS = {
    "smiling": ("lips", "mouth", "teeth"),
    "bangs": ("bangs",),
    "lipstick": ("lips",),
    "glasses": ("glasses",),
    "beard": ("beard",),
    **{f"{color} hair": ("hair", "bangs") for color in HAIR_COLORS},
    **{f"{color} background": ("background",) for color in BACKGROUND_COLORS},
}
LEAST_SHARE = 0.25  # of a pixel, that a part must cover to count
_FACES_OF_A_SEED = 10_000  # among which one is sought that a prompt describes


def parts(samples: torch.Tensor) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Drawn faces, as many and as large as `samples`, and where their parts are.

    Args:
        samples (`torch.Tensor` of shape `(image, 3, height, width)`): Their size alone counts.

    Returns:
        `tuple`: faces of that shape in [-1, 1], and the masks by name, bool `(image, height, width)`.
    """
    drawings = [draw_face(random_face(FIRST_SEED + number), samples.shape[-1]) for number in range(len(samples))]
    coverage = np.stack([drawing.coverage for drawing in drawings], axis=1)  # (part, image, height, width)
    images = np.stack([drawing.image for drawing in drawings]).transpose(0, 3, 1, 2)
    return _scaled(images), {name: _mask(coverage, members) for name, members in CONCEPTS.items()}


def words(picture: torch.Tensor, prompt: str, seed: int) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """A drawn face that shows what a prompt of the captions' words says and nothing else, and where the words are.

    Args:
        picture (`torch.Tensor` of shape `(3, height, width)`): Its size alone counts.
        prompt (`str`): The prompt. A colour that it does not name is any.
        seed (`int`): Of the face.

    Returns:
        `tuple`: the face in that shape in [-1, 1], and the masks by word, bool `(height, width)`.
    """
    drawing = draw_face(_described(prompt, seed), picture.shape[-1])
    return _scaled(drawing.image.transpose(2, 0, 1)), {
        word: _mask(drawing.coverage, members) for word, members in WORDS.items() if word in prompt
    }


def _described(prompt: str, seed: int) -> Face:
    """A face of no training that is as a prompt says."""
    fixed = {
        "bangs": "bangs" in prompt, "male": "woman" not in prompt and "man" in prompt, "smiling": "smiling" in prompt,
        "wearing_lipstick": "lipstick" in prompt, "glasses": "glasses" in prompt,
    }  # fmt: skip
    hair = [color for color in HAIR_COLORS if f"{color} hair" in prompt] or list(HAIR_COLORS)
    background = [color for color in BACKGROUND_COLORS if f"{color} background" in prompt] or list(BACKGROUND_COLORS)
    first = FIRST_SEED + seed * _FACES_OF_A_SEED
    faces = (random_face(number, **fixed) for number in range(first, first + _FACES_OF_A_SEED))
    return next(face for face in faces if face.hair_color in hair and face.background_color in background)


def _mask(coverage: np.ndarray, members: tuple[str, ...]) -> np.ndarray:
    """Where parts of a coverage (part, …) are."""
    return coverage[[PARTS.index(part) for part in members]].sum(0) >= LEAST_SHARE


def _scaled(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)
