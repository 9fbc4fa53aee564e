"""Layer gradient maps."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from diffusers_xai.recording.gradients import GradientSpec, check_finite
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.replay import StepReplay
from diffusers_xai.taps import tap_output


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
        run = recording.run
        layers = run.denoiser.resolve_layers(self.layers)
        recording.expect(self, [f"gradient_maps/{path}" for path in layers], exclusive=True)

        def declare(path: str, output: Any) -> None:
            if run.step == 0 and not run.is_replaying and f"gradient_maps/{path}" not in recording.planned[id(self)]:
                _, labelled = run.labelling.stream(path, output)
                passes = 0 if recording.planned[id(self)] else 1
                recording.declare(
                    self,
                    f"gradient_maps/{path}",
                    labelled.values.shape[1:],
                    labelled.values.dtype,
                    backward_passes=passes,
                )

        def explain(replay: StepReplay) -> None:
            with replay.graph(layers=layers) as graph:
                pixels = torch.as_tensor(self.selected_pixels(run.positions))
                masked = graph.target[(slice(None), *pixels.T)].sum()
                gradients = torch.autograd.grad(masked, list(graph.layers.values()), allow_unused=True)
            for (call, path, _), gradient in zip(graph.layers, gradients, strict=True):
                name = f"gradient_maps/{path}"
                if gradient is None:
                    raise RuntimeError(f"GradientMaps: expected layers that the output depends on, got {path!r}.")
                check_finite(name, gradient, gradient.dtype)
                run.current_call = call
                _, labelled = run.labelling.stream(path, gradient)
                recording.keep(self, name, labelled.values, labelled.dims, call=call)

        for path, module in layers.items():
            stack.enter_context(tap_output(module, partial(declare, path), read=lambda output: output))
        self.on_replay(recording, explain)
