"""Layer gradient maps."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.recording.gradients import LayerGradientSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMaps(LayerGradientSpec):
    """Records the gradient map g_{l,t} of layers: the masked output, differentiated by a layer's output.

    The thesis stores one map per pixel and sums them; by linearity that equals one backward pass of the masked sum,
    which gives all layers at once. Arrays: `gradient_maps/<layer>` of the dims of `activations/<layer>`.

    Args:
        layers (`str` or list of `str`): See [`Activations`].
        mask, pixels, of: See [`GradientSpec`]; the pixels are summed.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer.
        ValueError: before sampling, for a mask that does not fit the sample.

    Source: thesis section 4.3, listing C.3.
    """

    group: ClassVar[str] = "gradient_maps"

    def map_of(self, path: str, output: Labelled, gradient: torch.Tensor) -> Labelled:
        """The gradient as it is."""
        return Labelled(gradient, output.dims)
