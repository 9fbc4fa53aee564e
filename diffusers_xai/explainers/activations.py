"""Layer activations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from diffusers_xai.recording.layers import layer_names, with_dims
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import tap_output


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


@dataclass(frozen=True, kw_only=True)
class Activations(RecordSpec):
    """Records the output a_{l,t} of layers (thesis alg. 5).

    Arrays: `activations/<layer>` of dims (step, sample, channel, height, width), with `branch` after `sample` under
    guidance. Of a block that returns several tensors the first, its hidden state, is recorded. Tokens that cover the
    image become a grid; other tokens keep dims (…, channel, token), and vectors (…, channel).

    Args:
        layers (`str` or list of `str`): Module paths, aliases (`downs.1.3`), or globs of either: `*` stands for one
            component of a path (`downs.*.2.fn`, `down_blocks.*`), `**` for any number (`**.attn`).
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer, with the nearest names.
        TypeError: if `layers` is not a name or several.
    """

    layers: str | Iterable[str] = field(kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the output of every matching layer."""
        run = recording.run

        def keep(path: str, output: torch.Tensor) -> None:
            if recording.is_selected(self):
                values, dims = with_dims(path, output, run.denoiser, run.sample_size)
                recording.keep(self, f"activations/{path}", values, dims)

        for path, module in run.denoiser.resolve_layers(self.layers).items():
            recording.expect(self, [f"activations/{path}"])
            stack.enter_context(tap_output(module, partial(keep, path)))

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """The output of every matching layer that runs."""
        steps, arrays = context.steps(self), []
        for path in context.denoiser.resolve_layers(self.layers):
            if path in context.outputs:
                output, _ = with_dims(path, context.outputs[path], context.denoiser, context.sample_shape[1:])
                arrays.append(context.array(f"activations/{path}", steps, output.shape[1:], output.dtype))
        return arrays
