"""Activation patching: layers' outputs taken from another run."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.interventions.layer_edit import EditContext, LayerEditSpec, mask_amount
from diffusers_xai.interventions.replacement import ProfileReplacement, describe_replacement
from diffusers_xai.measures import Mask, as_mask, mask_to_runs
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording.clock import Run


@dataclass(frozen=True, eq=False)
class Patch(LayerEditSpec):
    """Replaces layers' outputs by what another run recorded of them at the same steps.

    With everything patched, the run becomes the other one; what a patch of one layer and a few steps takes over tells
    what they carry.

    Args:
        layers (`str` or list of `str`): Module paths, aliases, or globs of either, as in [`Activations`].
        source ([`DiffusionProfile`]): The other run, with `activations/<layer>` at the patched steps, of a single
            image or of as many as this run has.
        mask (array of shape `(height, width)` of the samples, bool, or a PNG file's path, *optional*): Where outputs
            are replaced; resized to the layer bilinearly. Everywhere if `None`.
        stream, branch, skip, steps, timesteps, every: See [`LayerEditSpec`].

    Raises:
        TypeError: if `source` is no profile.
        KeyError: when the run is attached, if a name matches no layer or the profile does not have it.
        ValueError: before sampling starts, if the mask, the steps or the profile do not fit the run.
        RuntimeError: after the first step, if a layer did not run.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing).
    """

    source: DiffusionProfile
    mask: Mask | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.source, DiffusionProfile):
            raise TypeError(f"Expected `source` as a DiffusionProfile, got {type(self.source).__name__}.")
        if self.mask is not None:
            object.__setattr__(self, "mask", as_mask(self.mask).copy())

    @property
    def needs_rows(self) -> bool:
        """Each row has a patch of its own."""
        return True

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Edits the output of every matching layer."""
        for path in run.denoiser.resolve_layers(self.names):
            ProfileReplacement(self.source, path)
        super().attach(run, stack, samples)

    def check(self, run: Run, path: str, steps: frozenset[int]) -> None:
        """Refuses a mask or a profile that does not fit."""
        if self.mask is not None:
            as_mask(self.mask, run.sample_size)
        ProfileReplacement(self.source, path).check(steps, run)

    def changed(self, values: torch.Tensor, context: EditContext) -> torch.Tensor:
        """What the other run recorded, within the mask."""
        shape = tuple(values.shape[1:])
        recorded = ProfileReplacement(self.source, context.path).values(context.step, context.rows, shape)
        patched = torch.empty_like(values).copy_(recorded)  # laid out as the layer's own: kernels round by that
        if self.mask is None:
            return patched
        amount = mask_amount(self.mask, values, context).to(values)
        return values * (1 - amount) + patched * amount

    def to_dict(self) -> dict[str, Any]:
        """The edit as short JSON-able data: the mask as run lengths, the source by what identifies its run."""
        mask = None if self.mask is None else mask_to_runs(as_mask(self.mask))
        return {**super().to_dict(), "mask": mask, "source": describe_replacement(self.source)}
