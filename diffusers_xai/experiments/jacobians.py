"""How the predicted clean image and an inner layer depend on the state, at moments of the process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffusers_xai.analysis.singular import Jacobian, Triplets, leading_triplets, local_dimension
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.profile.selection import nearest
from diffusers_xai.recording.replay import frozen
from diffusers_xai.taps import copy_scheduler, noise_level, scale_model_input, tap_output, x0_and_noise
from diffusers_xai.taps.noise import sigmas_in_use


TIMES = (0.8, 0.6, 0.4, 0.2)  # shares of the training's timesteps
CLEAN, LAYER = "x0", "h"
MIDDLE = "mid_block"
ITERATIONS, TOLERANCE, PROBES = 8, 1e-2, 8


@dataclass(frozen=True)
class Spectrum:
    """What is known of a Jacobian at the states of one moment."""

    triplets: Triplets
    dimension: torch.Tensor
    shape: torch.Size  # of an input, and
    output_shape: torch.Size


class Spectra:
    """Finds the leading singular triplets of several objects at several steps.

    Args:
        sampling ([`Sampling`]): What is sampled.
        steps (`Sequence[int]`): The steps.
        objects (`Mapping[str, str | None]`): Objects by name, the layer of each; `None` for x̂_0.
        count (`int`): How many triplets.
        inputs (`torch.Tensor`, *optional*): Which pixels of x_t may be moved, and
        outputs (`torch.Tensor`, *optional*): which of x̂_0 are looked at, `(height, width)`.

    Attributes:
        products (`int`): Products with Jacobians so far, of one state each.
    """

    def __init__(
        self,
        sampling: Sampling,
        steps: Sequence[int],
        objects: Mapping[str, str | None],
        count: int,
        *,
        inputs: torch.Tensor | None = None,
        outputs: torch.Tensor | None = None,
    ):
        self._sampling, self._steps, self._objects, self._count = sampling, steps, objects, count
        self._inputs, self._outputs = inputs, outputs
        self.products = 0

    def of(self, pipe: XAIPipeline, states: torch.Tensor) -> dict[str, list[Spectrum]]:
        """Of each object that the network has, a spectrum for each step; `states` `(step, seed, …)` are the steps'."""
        layers = get_denoiser(pipe).layers
        known = {name: layer for name, layer in self._objects.items() if layer is None or layer in layers}
        return {
            name: [self._at(pipe, *at, layer) for at in zip(self._steps, states, strict=True)]
            for name, layer in known.items()
        }

    def _at(self, pipe: XAIPipeline, step: int, state: torch.Tensor, layer: str | None) -> Spectrum:
        outputs = self._outputs if layer is None else None
        with frozen(pipe.unet):
            function = clean_image(pipe, self._sampling, step, layer)
            rows = self._sampling.batch_size
            jacobian = Jacobian(function, state, inputs=self._inputs, outputs=outputs, max_rows=rows)
            triplets = leading_triplets(jacobian, self._count, iterations=ITERATIONS, tolerance=TOLERANCE)
            dimension = local_dimension(jacobian, triplets, probes=PROBES)
        self.products += jacobian.products
        return Spectrum(triplets, dimension, jacobian.shape, jacobian.output_shape)


def middle_layer(pipe: XAIPipeline, layer: str | None) -> str | None:
    """The module path of h; `None` where the network has no middle block and none is asked for."""
    denoiser = get_denoiser(pipe)
    if layer is None:
        return MIDDLE if MIDDLE in denoiser.layers else None
    paths = list(denoiser.resolve_layers(layer))
    if len(paths) != 1:
        raise ValueError(f"Expected the name of one layer, got {layer!r}, which matches {len(paths)}")
    return paths[0]


def moments(pipe: XAIPipeline, sampling: Sampling) -> list[int]:
    """The steps nearest to the moments, the first step left out: its state is what the run begins with."""
    pipe.scheduler.set_timesteps(sampling.steps)
    timesteps = np.asarray(pipe.scheduler.timesteps, dtype=np.float64)
    return sorted({1 + nearest(timesteps[1:], timestep_at(pipe, time)) for time in TIMES})


def clean_image(
    pipe: XAIPipeline, sampling: Sampling, step: int, layer: str | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The predicted clean image, or the output of a layer on its way there, as a function of the states of a step."""
    scheduler = copy_scheduler(pipe.scheduler)
    scheduler.set_timesteps(sampling.steps, device=pipe.device)
    probe = XAIPipeline(pipe.unet, scheduler)
    timestep = scheduler.timesteps[step]
    level = noise_level(scheduler, float(timestep), step, sigmas_in_use(scheduler))
    label = sampling.labels[0] if sampling.labels else None

    def clean(states: torch.Tensor) -> torch.Tensor:
        output = probe.predict(states, timestep, [label] * len(states), sampling.guidance_scale)
        return x0_and_noise(scheduler, level, output, scale_model_input(scheduler, states, timestep))[0]

    def inner(states: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        with tap_output(get_denoiser(pipe).layers[str(layer)], outputs.append):
            clean(states)
        if len(outputs) != 1 or outputs[0].ndim != 4:
            raise ValueError(
                f"{layer}: expected a layer that runs once and puts out maps (row, channel, height, width), got"
                f" {[tuple(output.shape) for output in outputs]}"
            )
        return outputs[0][-len(states) :]  # with guidance, of the branch with the label

    return clean if layer is None else inner
