"""Layer activations."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from diffusers_xai.denoisers.labelling import Labelled, Labelling
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import tap_output


STREAMS = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Activations(RecordSpec):
    """Records the output a_{l,t} of layers (thesis alg. 5).

    Arrays: `activations/<layer>` of dims (step, sample, channel, height, width), of videos (…, channel, frame, height,
    width), of sound (…, channel, frame), with `branch` after `sample` under guidance. Of a U-Net block that returns
    several tensors the first, its hidden state, is recorded. Tokens that hold the image's places become a grid: those
    that come from the sample, as one call of the network with NaN in its place tells before the first step. Others
    keep dims (…, channel, token), with the strings of the text's tokens as coordinate `token` or `text` as in
    [`AttentionWeights`], and vectors (…, channel). A layer that runs twice in one call of the network is recorded as
    `activations/<layer>` and `activations/<layer>@2`.

    Args:
        layers (`str` or list of `str`): Module paths, aliases (`downs.1.3`), or globs of either: `*` stands for one
            component of a path (`downs.*.2.fn`, `down_blocks.*`), `**` for any number (`**.attn`). Of what a glob
            matches, layers that do not run or do not put out rows of the batch are left out.
        stream (`str`, defaults to `"image"`): Which tokens of layers that have both: `"image"` or `"text"`.
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        KeyError: when recording starts, if a name matches no layer, with the nearest names.
        TypeError: if `layers` is not a name or several.
        ValueError: for another stream; at the first step, for a layer whose output does not hold the batch's rows.
    """

    layers: str | Iterable[str] = field(kw_only=False)
    stream: str = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))
        if self.stream not in STREAMS:
            raise ValueError(f"Expected `stream` in {STREAMS}, got {self.stream!r}.")

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps the output of every matching layer."""
        run = recording.run
        recording.follow_prompt(stack)

        def keep(path: str, is_named: bool, output: Any) -> None:
            if not recording.looks(self):
                return
            try:
                _, labelled = run.labelling.stream(path, output, self.stream)
                is_text = _is_text(run.labelling, path, output, labelled)
            except (TypeError, ValueError):
                if is_named:
                    raise
                return
            values = labelled.values if recording.is_selected(self) else labelled.values.to("meta")
            recording.keep(self, f"activations/{path}", values, labelled.dims, of_text=is_text)

        layers = run.denoiser.resolve_layers(self.layers)
        run.origins.layers.update(layers)
        for path, module in layers.items():
            is_named = run.denoiser.is_named(path, self.layers)
            if is_named:
                recording.expect(self, [f"activations/{path}"])
            stack.enter_context(tap_output(module, partial(keep, path, is_named), read=lambda output: output))


def _is_text(labelling: Labelling, path: str, output: Any, labelled: Labelled) -> bool:
    """Whether a layer's tokens are those of the text, as the denoiser is given it."""
    layout, leaf = labelling.layout, path.rpartition(".")[2]
    of_image = layout is not None and layout.image_prompt_first and "add" in leaf
    streams = labelling.outputs(path, output)
    is_text = "text" in streams and streams["text"][1].values.shape == labelled.values.shape
    return is_text and labelled.dims[-1] == "token" and not of_image
