"""Channel ablation: chosen channels of a layer's output, replaced or weakened."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from diffusers_xai.denoisers import stated_channels
from diffusers_xai.interventions.replacement import ProfileReplacement, describe_replacement, replacement_tensor
from diffusers_xai.measures import Mask, as_mask, mask_to_runs, resize_mask
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import EditSpec
from diffusers_xai.recording.layers import layer_names
from diffusers_xai.recording.steps import StepSpec
from diffusers_xai.taps import SchedulerStep, edit_output


@dataclass(frozen=True, eq=False)
class ChannelAblation(StepSpec, EditSpec):
    """Replaces channels of layers' outputs: `out · (1 − a) + r · a`, with `a = amount · mask`.

    Out of place. Of a block that returns several tensors the first, its hidden state, is changed, in the same
    container; where it is also the block's last skip, both carry the change. Under guidance all branches do. Of tokens
    (batch, token, channel) the last dim holds the channels.

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
        skip (`bool`, defaults to `True`): Change the block's last skip too, where it is the hidden state.
        steps, timesteps, every: See [`StepSpec`]; at every step by default.

    Raises:
        TypeError, ValueError: for values that are not possible.
        KeyError: when the run is attached, if a name matches no layer or is not in the profile `replace`.
        ValueError: before sampling starts, if the mask, the steps or the profile do not fit the run, and for a channel
            that a layer says it does not have; else at the layer's first output.
        RuntimeError: after the first step, if a layer did not run.
    """

    layers: str | Iterable[str]
    channels: int | Iterable[int]
    replace: Literal["zero", "mean"] | torch.Tensor | np.ndarray | DiffusionProfile = "zero"
    amount: float = 1.0
    mask: Mask | None = None
    skip: bool = True

    # Masks and tensors have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", layer_names(self.layers))
        object.__setattr__(self, "channels", _channel_indices(self.channels))
        if not 0 <= self.amount <= 1:
            raise ValueError(f"Expected `amount` in [0, 1], got {self.amount}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())
        object.__setattr__(self, "replace", replacement_tensor(self.replace))

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Edits the output of every matching layer."""
        for path, module in run.denoiser.resolve_layers(self.layers).items():
            layer = _AblatedLayer(self, run, path, stated_channels(module), samples)
            run.on_start(layer.start)
            run.on_step(layer.check_has_run)
            stack.enter_context(edit_output(module, layer.edit, self.skip))

    def to_dict(self) -> dict[str, Any]:
        """The edit as short JSON-able data: the mask as run lengths, `replace` by what identifies it."""
        mask = None if self.mask is None else mask_to_runs(as_mask(self.mask))
        return {**super().to_dict(), "mask": mask, "replace": describe_replacement(self.replace)}


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


class _AblatedLayer:
    """A [`ChannelAblation`] of one layer in one run."""

    def __init__(self, spec: Any, run: Run, path: str, channels: int | None, samples: Sequence[int] | None):
        self.spec = spec
        self.run = run
        self.path = path
        self.stated_channels = channels
        self.samples = samples
        self.steps: frozenset[int] = frozenset()
        self.has_run = False
        self.profile = ProfileReplacement(spec.replace, path) if isinstance(spec.replace, DiffusionProfile) else None
        if channels is not None:
            self._check_channels(channels)

    def start(self) -> None:
        """Refuses what does not fit the run, before the first denoiser call."""
        train_timesteps = self.run.scheduler.config.get("num_train_timesteps", 1000)
        self.steps = self.spec.select_steps(self.run.timesteps, train_timesteps)
        if self.spec.mask is not None:
            as_mask(self.spec.mask, self.run.sample_size)
        if self.profile is not None:
            self.profile.check(self.steps, self.run)

    def check_has_run(self, step: SchedulerStep) -> None:
        if not self.has_run:
            raise RuntimeError(
                f"ChannelAblation: {self.path} did not run in this network's forward pass. Choose a layer that runs."
            )

    def edit(self, output: torch.Tensor) -> torch.Tensor:
        """The layer's output with the channels replaced, in the same layout."""
        is_selected = self.run.step in self.steps
        if self.has_run and not is_selected:
            return output
        # The first output is edited at any step, if only to refuse there what would not fit later.
        edited = self._edit(output, self.run.step if is_selected else min(self.steps))
        self.has_run = True
        return edited if is_selected else output

    def _edit(self, output: torch.Tensor, step: int) -> torch.Tensor:
        maps = self.run.denoiser.to_grid(output, self.run.sample_size)
        if maps.ndim == 3:  # tokens that do not cover the image
            maps = maps.transpose(1, 2)
        if maps.ndim not in (2, 3, 4) or self.stated_channels not in (None, maps.shape[1]):
            raise ValueError(
                f"{self.path}: expected an output (batch, channel, height, width), (batch, token, channel) or"
                f" (batch, channel) with {self.stated_channels or 'any number of'} channels, got shape"
                f" {tuple(output.shape)}."
            )
        self._check_channels(maps.shape[1])
        rows = self._rows(maps.shape[0])
        index = (
            torch.tensor(rows, device=maps.device)[:, None],
            torch.tensor(self.spec.channels, device=maps.device)[None, :],
        )
        old = maps[index]
        amount = self._amount(old)
        edited = maps.index_put(index, old * (1 - amount) + self._replacement(maps, old, rows, step) * amount)
        return edited.flatten(2).transpose(1, 2) if output.ndim == 3 else edited

    def _check_channels(self, count: int) -> None:
        outside = [channel for channel in self.spec.channels if channel >= count]
        if outside:
            raise ValueError(f"{self.path}: expected `channels` in 0..{count - 1}, got {outside}.")

    def _rows(self, batch: int) -> list[int]:
        if self.samples is None:
            return list(range(batch))
        try:
            origins = self.run.rows(batch)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error} It cannot be changed image by image.") from error
        return [row for row, (_, sample) in enumerate(origins) if sample in self.samples]

    def _amount(self, old: torch.Tensor) -> torch.Tensor | float:
        if self.spec.mask is None:
            return self.spec.amount
        if old.ndim != 4:
            raise ValueError(f"{self.path}: a `mask` needs an output that covers the image, got {tuple(old.shape)}.")
        return (resize_mask(self.spec.mask, *old.shape[2:]) * self.spec.amount).to(old)

    def _replacement(self, maps: torch.Tensor, old: torch.Tensor, rows: list[int], step: int) -> torch.Tensor | float:
        """What broadcasts to `old` (row, channel, …)."""
        replace = self.spec.replace
        if self.profile is not None:
            origins = self.run.rows(maps.shape[0])
            values = self.profile.values(step, [origins[row] for row in rows], tuple(maps.shape[1:]))
            return values[:, list(self.spec.channels)].to(old)
        if isinstance(replace, torch.Tensor):
            try:
                return replace.to(old).expand(old.shape[1:])
            except RuntimeError as error:
                raise ValueError(
                    f"{self.path}: expected `replace` to broadcast to the chosen channels' shape"
                    f" {tuple(old.shape[1:])}, got {tuple(replace.shape)}."
                ) from error
        if replace == "zero":
            return 0.0
        if old.ndim == 2:
            raise ValueError(f"{self.path}: its output {tuple(maps.shape)} has no image to take a mean over.")
        return old.mean(dim=tuple(range(2, old.ndim)), keepdim=True)
