"""The measures a profile can be asked for by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from diffusers_xai.measures.distance import layer_distance
from diffusers_xai.measures.error import mean_squared_error, peak_signal_to_noise_ratio
from diffusers_xai.measures.ssim import ssim_contrast, ssim_luminance, ssim_structure, structural_similarity


@dataclass(frozen=True)
class Measure:
    """A function that compares two batches, and what its values mean.

    Attributes:
        name (`str`): The name it is asked for.
        title (`str`): What a figure calls it.
        function (`Callable`): Takes two tensors of one shape `(batch, ...)`, returns a tensor of shape `(batch,)`.
        higher_is_better (`bool`): Whether a higher value means that the two are more alike.
        bounds (`tuple[float, float]`): Smallest and largest possible value.
        of (`"samples"`, `"attention_outputs"` or `"activations"`): What it compares: images, the maps A_t, or the
            outputs of a layer that is named besides.
    """

    name: str
    title: str
    function: Callable[..., torch.Tensor]
    higher_is_better: bool
    bounds: tuple[float, float]
    of: Literal["samples", "attention_outputs", "activations"]

    @property
    def of_equals(self) -> float:
        """The value of two equal batches."""
        return self.bounds[self.higher_is_better]


_SIMILARITY, _DISTANCE = (-1.0, 1.0), (0.0, math.inf)

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("ssim", "SSIM", structural_similarity, True, _SIMILARITY, "samples"),
        Measure("ssim_luminance", "SSIM's luminance", ssim_luminance, True, _SIMILARITY, "samples"),
        Measure("ssim_contrast", "SSIM's contrast", ssim_contrast, True, (0.0, 1.0), "samples"),
        Measure("ssim_structure", "SSIM's structure", ssim_structure, True, _SIMILARITY, "samples"),
        Measure("psnr", "PSNR (dB)", peak_signal_to_noise_ratio, True, (-math.inf, math.inf), "samples"),
        Measure("mse", "mean squared error", mean_squared_error, False, _DISTANCE, "samples"),
        Measure(
            "attention_distance", "distance of A<sub>t</sub>", layer_distance, False, _DISTANCE, "attention_outputs"
        ),
        Measure("distance", "LayerDist", layer_distance, False, _DISTANCE, "activations"),
    )
}
