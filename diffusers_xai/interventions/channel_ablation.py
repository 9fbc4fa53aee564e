"""Channel ablation: chosen channels of a layer's output, replaced or weakened."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from diffusers_xai.denoisers import stated_channels
from diffusers_xai.interventions.layer_edit import EditContext, LayerEditSpec, mask_amount
from diffusers_xai.interventions.replacement import ProfileReplacement, describe_replacement, replacement_tensor
from diffusers_xai.measures import Mask, as_mask, mask_to_runs
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run


@dataclass(frozen=True, eq=False)
class ChannelAblation(LayerEditSpec):
    """Replaces channels of layers' outputs: `out · (1 − a) + r · a`, with `a = amount · mask`.

    Of tokens (batch, token, channel) the last dim holds the channels.

    Source: thesis alg. 6, listing C.1 (`r = 0`, `a = 1`, at every step).

    Args:
        layers (`str` or list of `str`): Module paths, aliases (`downs.1.3`), or globs of either, as in
            [`Activations`].
        channels (`int` or sequence of `int`): 0-based indices, the same in every matching layer.
        replace (`"zero"`, `"mean"`, `torch.Tensor`, `np.ndarray` or [`DiffusionProfile`], defaults to `"zero"`): What
            r is: 0; the channel's own mean over the image; values that broadcast to (channels, height, width), where
            `channels` counts the chosen ones; or what another run recorded of the layer (`activations/<layer>`) at the
            same step, for a single image or for as many as this run has.
        amount (`float`, defaults to 1.0): In [0, 1].
        mask (array of shape `(height, width)` of the samples, bool, or a PNG file's path, *optional*): Where the
            channels are replaced; resized to the layer bilinearly. Everywhere if `None`.
        stream, branch, skip, steps, timesteps, every: See [`LayerEditSpec`].

    Raises:
        TypeError, ValueError: for values that are not possible.
        KeyError: when the run is attached, if a name matches no layer or is not in the profile `replace`.
        ValueError: before sampling starts, if the mask, the steps or the profile do not fit the run, and for a channel
            that a layer says it does not have; else at the layer's first output.
        RuntimeError: after the first step, if a layer did not run.
    """

    channels: int | Iterable[int]
    replace: Literal["zero", "mean"] | torch.Tensor | np.ndarray | DiffusionProfile = "zero"
    amount: float = 1.0
    mask: Mask | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", _channel_indices(self.channels))
        if not 0 <= self.amount <= 1:
            raise ValueError(f"Expected `amount` in [0, 1], got {self.amount}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())
        object.__setattr__(self, "replace", replacement_tensor(self.replace))

    @property
    def needs_rows(self) -> bool:
        """Whether a row's image and branch matter: where each has a replacement of its own."""
        return isinstance(self.replace, DiffusionProfile)

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Edits the output of every matching layer."""
        for path, module in run.denoiser.resolve_layers(self.names).items():
            channels = stated_channels(module)
            if channels is not None:
                self._check_channels(path, channels)
            if isinstance(self.replace, DiffusionProfile):
                ProfileReplacement(self.replace, path)
        super().attach(run, stack, samples)

    def check(self, run: Run, path: str, steps: frozenset[int]) -> None:
        """Refuses a mask or a profile that does not fit."""
        if self.mask is not None:
            as_mask(self.mask, run.sample_size)
        if isinstance(self.replace, DiffusionProfile):
            ProfileReplacement(self.replace, path).check(steps, run)

    def changed(self, values: torch.Tensor, context: EditContext) -> torch.Tensor:
        """The values with the channels replaced."""
        if context.dims[0] != "channel":
            raise ValueError(f"{context.path}: expected an output with channels, got dims {context.dims}.")
        self._check_channels(context.path, values.shape[1])
        channels = torch.tensor(layer_channels(self), device=values.device)
        old = values[:, channels]
        amount = self._amount(old, context)
        new = old * (1 - amount) + self._replacement(values, old, context) * amount
        edited = values.clone()  # of the same memory layout, which kernels round by
        edited[:, channels] = new.to(values.dtype)
        return edited

    def to_dict(self) -> dict[str, Any]:
        """The edit as short JSON-able data: the mask as run lengths, `replace` by what identifies it."""
        mask = None if self.mask is None else mask_to_runs(as_mask(self.mask))
        return {**super().to_dict(), "mask": mask, "replace": describe_replacement(self.replace)}

    def _check_channels(self, path: str, count: int) -> None:
        outside = [channel for channel in layer_channels(self) if channel >= count]
        if outside:
            raise ValueError(f"{path}: expected `channels` in 0..{count - 1}, got {outside}.")

    def _amount(self, old: torch.Tensor, context: EditContext) -> torch.Tensor | float:
        if self.mask is None:
            return self.amount
        return (mask_amount(self.mask, old, context) * self.amount).to(old)

    def _replacement(self, values: torch.Tensor, old: torch.Tensor, context: EditContext) -> torch.Tensor | float:
        """What broadcasts to `old` (row, channel, …)."""
        replace = self.replace
        if isinstance(replace, DiffusionProfile):
            recorded = ProfileReplacement(replace, context.path).values(
                context.step, context.rows, tuple(values.shape[1:])
            )
            return recorded[:, list(layer_channels(self))].to(old)
        if isinstance(replace, torch.Tensor):
            try:
                return replace.to(old).expand(old.shape[1:])
            except RuntimeError as error:
                raise ValueError(
                    f"{context.path}: expected `replace` to broadcast to the chosen channels' shape"
                    f" {tuple(old.shape[1:])}, got {tuple(replace.shape)}."
                ) from error
        if replace == "zero":
            return 0.0
        if old.ndim == 2:
            raise ValueError(
                f"{context.path}: expected an output with an image to take a mean over, got {tuple(values.shape)}."
            )
        return old.mean(dim=tuple(range(2, old.ndim)), keepdim=True)


def layer_channels(edit: ChannelAblation) -> tuple[int, ...]:
    """The channels of an ablation as indices."""
    return edit.channels  # type: ignore[return-value]  # made a tuple when it was checked


def _channel_indices(channels: Any) -> tuple[int, ...]:
    if isinstance(channels, (torch.Tensor, np.ndarray)):
        channels = channels.reshape(-1).tolist()
    values = tuple(channels) if isinstance(channels, Iterable) else (channels,)
    if any(isinstance(value, bool) or not hasattr(value, "__index__") for value in values):
        raise TypeError(f"Expected `channels` as an index or several, got {channels!r}.")
    indices = tuple(value.__index__() for value in values)
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise ValueError(f"Expected `channels` as one or several different indices from 0 on, got {list(indices)}.")
    return indices
