"""The measures a profile can be asked for by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from diffusers_xai.measures.distance import layer_distance
from diffusers_xai.measures.ssim import structural_similarity


@dataclass(frozen=True)
class Measure:
    """A function that compares two batches, and what its values mean.

    Attributes:
        name (`str`): The name it is asked for.
        function (`Callable`): Takes two tensors of one shape `(batch, ...)`, returns a tensor of shape `(batch,)`.
        higher_is_better (`bool`): Whether a higher value means that the two are more alike.
        bounds (`tuple[float, float]`): Smallest and largest possible value.
        of (`"samples"` or `"activations"`): What it compares: images, or the outputs of a layer.
    """

    name: str
    function: Callable[..., torch.Tensor]
    higher_is_better: bool
    bounds: tuple[float, float]
    of: Literal["samples", "activations"]


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("ssim", structural_similarity, higher_is_better=True, bounds=(-1.0, 1.0), of="samples"),
        Measure("distance", layer_distance, higher_is_better=False, bounds=(0.0, math.inf), of="activations"),
    )
}
