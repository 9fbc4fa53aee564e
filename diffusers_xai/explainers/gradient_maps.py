"""Layer gradient maps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from diffusers_xai.recording.gradients import GradientSpec, check_finite
from diffusers_xai.recording.layers import layer_names, with_dims
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.replay import StepReplay


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientMaps(GradientSpec):
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

    layers: str | Iterable[str] = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Replays every selected step with a graph."""
        layers = recording.run.denoiser.resolve_layers(self.layers)
        recording.expect(self, [f"gradient_maps/{path}" for path in layers], exclusive=True)

        def explain(replay: StepReplay) -> None:
            size = recording.run.sample_size
            with replay.graph(layers=layers) as graph:
                pixels = torch.as_tensor(self.selected_pixels(size))
                masked = graph.target[:, pixels[:, 0], pixels[:, 1]].sum()
                gradients = torch.autograd.grad(masked, list(graph.layers.values()), allow_unused=True)
            for path, gradient in zip(graph.layers, gradients, strict=True):
                if gradient is None:
                    raise RuntimeError(f"The output does not depend on layer {path!r}: it has no gradient map.")
                check_finite(f"gradient_maps/{path}", gradient, gradient.dtype)
                values, dims = with_dims(path, gradient, recording.run.denoiser, size)
                recording.keep(self, f"gradient_maps/{path}", values, dims)

        self.on_replay(recording, stack, explain)

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """A map per matching layer, all from one backward pass per step."""
        steps = context.steps(self)
        arrays: list[PlannedArray] = []
        for path in context.denoiser.resolve_layers(self.layers):
            if path in context.outputs:
                output, _ = with_dims(path, context.outputs[path], context.denoiser, context.sample_shape[1:])
                passes = 0 if arrays else len(steps)
                arrays.append(
                    context.array(
                        f"gradient_maps/{path}", steps, output.shape[1:], output.dtype, backward_passes=passes
                    )
                )
        return arrays
