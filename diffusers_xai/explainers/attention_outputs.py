"""The thesis's attention map A_t."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from diffusers_xai.denoisers.base import channels_beside_mlp
from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import tap_call, tap_output


@dataclass(frozen=True, kw_only=True)
class AttentionOutputs(RecordSpec):
    """Records A_t: all attention layers' outputs, summed over channels, up-sampled and added into one map.

    Outputs are taken before any residual sum (the thesis's layers "fn") and up-sampled linearly to the sample's size;
    of a layer that ends in one projection with an MLP (Flux 2's single blocks), what attention puts into it.
    Layers that attend to text alone are left out. These are not softmax attention weights. Array:
    `attention_outputs` of dims (step, sample, [frame,] height, width), of sound (step, sample, frame), with `branch`
    after `sample` under guidance;
    unbounded, signed.

    Args:
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: when recording starts, if the network has no attention layer; before the first step, if it is not
            known where an attention layer's tokens lie on the image.

    Source: thesis section 4.3, fig. 4.4.
    """

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the output of every attention layer."""
        run = recording.run
        attention_outputs = run.denoiser.attention_outputs()
        if not attention_outputs:
            raise ValueError(f"AttentionOutputs: expected a network with attention layers, got {run.denoiser.name}.")
        maps: dict[int, torch.Tensor] = {}  # by denoiser call within the step

        def add(path: str, output: Any) -> None:
            if not recording.looks(self):
                return
            streams, positions = run.labelling.outputs(path, output), run.positions
            if "image" not in streams and "text" in streams:
                return
            summed = self._summed(run, path, streams)
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(positions)]
            upsampled = F.interpolate(summed, size=positions, mode=mode, align_corners=False)[:, 0]
            call = run.current_call
            maps[call] = maps[call] + upsampled if call in maps else upsampled

        def keep() -> None:
            if recording.looks(self) and not maps:
                raise ValueError(
                    f"AttentionOutputs: expected attention layers that see the image, got none of {run.denoiser.name}."
                )
            for call, values in maps.items():
                shown = values if recording.is_selected(self) else values.to("meta")
                recording.keep(self, "attention_outputs", shown, run.labelling.position_dims, call=call)
            maps.clear()

        recording.expect(self, ["attention_outputs"])
        sources = {module: path for path, module in run.denoiser.layers.items()}
        run.before_step(keep)
        for path, module in attention_outputs.items():
            path = sources[module]
            run.origins.layers.add(path)
            width = channels_beside_mlp(module)
            if width is None:
                stack.enter_context(tap_output(module, partial(add, path), read=lambda output: output))
            else:
                before = lambda args, kwargs, path=path, width=width: add(path, args[0][..., :width])  # noqa: E731
                stack.enter_context(tap_call(run.denoiser.layers[f"{path}.to_out"], before))

    def _summed(self, run: Run, path: str, streams: Mapping[str, tuple[torch.Tensor, Labelled]]) -> torch.Tensor:
        """The sum over channels, and heads, of a layer's image: (row, 1, [frame,] height, width)."""
        labelled = streams["image"][1] if "image" in streams else streams[""][1]
        values, is_placed = labelled.values.detach().float(), "image" in streams
        if labelled.dims == ("head", "channel", "token"):
            grid = run.labelling.image_grid(values.shape[-1])
            values, is_placed = values.flatten(1, 2), grid is not None
            values = values if grid is None else values.unflatten(2, grid)
        if values.ndim != 2 + len(run.positions) or not is_placed:
            raise ValueError(
                f"AttentionOutputs: expected layers whose tokens lie on the image; where those of {path} in"
                f" {run.denoiser.name} lie is not known. Tell it with `register_layout`."
            )
        return values.sum(dim=1, keepdim=True)
