"""What a visitor asks for: checked, and turned into a request to the pipeline."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusers_xai import (
    Activations,
    AttentionOutputs,
    AttentionWeights,
    ChannelAblation,
    GradientAttention,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    Samples,
)
from diffusers_xai.measures import mask_from_runs, mask_to_runs


# What visitors can choose -> diffusers' class; that of the checkpoint itself is `None`.
OWN_SCHEDULER = "the checkpoint's own"
SCHEDULERS = {
    OWN_SCHEDULER: None,
    "DDPM": "DDPMScheduler",
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
}
MAX_SEED = 2**63
MAX_GUIDANCE = 20.0


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for on a machine that many share.

    Args:
        max_steps (`int`): Denoising steps of a run.
        max_blocks (`int`): Blocks that are recorded.
        max_mask_pixels (`int`): Pixels of the region that a gradient volume is computed of.
        max_ablations (`int`): Masked channels.
        max_bytes (`int`): Size of a profile.
        max_side (`int`): Pixels of the longer side of an image, painted or in an opened profile.
        max_layers (`int`): Layers of a drawing.
        max_seconds (`float`): Duration of a run.
        confirm_seconds (`float`): A run that takes longer waits for a second press.
        request (`int`): Bytes of a request that is no upload.
        upload (`int`): Bytes of an uploaded file.
        disk (`int`): Bytes of all visitors' uploads and pictures.
        held (`int`): Bytes of all visitors' profiles.
        sessions (`int`): Visitors that are remembered; those that hold a run longest.
        queue (`int`): Jobs that wait.
        asking (`int`): Questions of what a run would cost that wait for a model.
        jobs (`int`): Jobs of one visitor, waiting or under way.
        jobs_of_address (`int`): Jobs from one address.
        jobs_without_page (`int`): Jobs of all programs that have no page open.
    """

    max_steps: int = 1000
    max_blocks: int = 6
    max_mask_pixels: int = 256
    max_ablations: int = 8
    max_bytes: int = 128 * 2**20
    max_side: int = 1024
    max_layers: int = 4
    max_seconds: float = 180.0
    confirm_seconds: float = 20.0
    request: int = 2**20
    upload: int = 64 * 2**20
    disk: int = 512 * 2**20
    held: int = 2**30
    sessions: int = 256
    queue: int = 32
    asking: int = 8
    jobs: int = 2
    jobs_of_address: int = 16
    jobs_without_page: int = 8


class SettingsError(ValueError):
    """A request that is refused; the text is for the visitor."""


def limit(high: int) -> str:
    """The greatest allowed value as a message shows it: of seeds, which have 19 digits, by their power of two."""
    return str(high) if high < MAX_SEED // 2 else f"2⁶³ − {MAX_SEED - high}"


def shortened(value: Any) -> str:
    """A value as a message shows it: without marks of Markdown, as a link that anyone writes may bring it."""
    if isinstance(value, str):
        return repr(re.sub(r"[<>\[\]`]|://", "·", value[:60]))
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of many digits"
    return str(value) if isinstance(value, (int, float, type(None))) else "something else"


@dataclass(frozen=True)
class Settings:
    """One run of a model. `mask` is `mask_to_runs` as JSON text, so that settings can be compared and shared."""

    model: str = ""
    label: int | None = 0
    seed: int = 7
    steps: int = 100
    every: int = 10
    scheduler: str = OWN_SCHEDULER
    guidance: float = 1.0
    layers: tuple[str, ...] = ()
    weights: bool = False
    gradients: bool = True
    mask: str | None = None
    ablations: tuple[tuple[str, int], ...] = ()
    switch_at: int | None = None
    switch_to: int = 0

    def mask_array(self) -> np.ndarray | None:
        """The mask as an array (height, width), bool."""
        return None if self.mask is None else mask_from_runs(json.loads(self.mask))

    def check(self, limits: Limits) -> "Settings":
        """The settings themselves, if they are within the limits.

        Raises:
            SettingsError: If not; the text says what to change.
        """
        if not 1 <= self.steps <= limits.max_steps:
            raise SettingsError(f"Expected 1 to {limits.max_steps} steps, got {self.steps}.")
        if not 0 <= self.seed < MAX_SEED:
            raise SettingsError(f"Expected a noise seed from 0 to {limit(MAX_SEED - 1)}, got {self.seed}.")
        if not 1 <= self.every <= self.steps:
            raise SettingsError(f"Expected to record every 1 to {self.steps} steps, got {self.every}.")
        if self.scheduler not in SCHEDULERS:
            raise SettingsError(
                f"Expected a scheduler out of {', '.join(SCHEDULERS)}, got {shortened(self.scheduler)}."
            )
        if not 1 <= self.guidance <= MAX_GUIDANCE:
            raise SettingsError(f"Expected a guidance scale from 1 to {MAX_GUIDANCE}, got {self.guidance}.")
        if len(self.layers) > limits.max_blocks:
            raise SettingsError(f"Expected at most {limits.max_blocks} blocks at a time, got {len(self.layers)}.")
        if len(self.ablations) > limits.max_ablations:
            raise SettingsError(f"Expected at most {limits.max_ablations} masked channels, got {len(self.ablations)}.")
        if self.switch_at is not None and not 0 <= self.switch_at <= self.steps:
            raise SettingsError(f"Expected a label switch at a step from 0 to {self.steps}, got {self.switch_at}.")
        if self.switch_at is not None and self.switch_to == self.label:
            raise SettingsError(
                f"Expected another label to switch to than that of the image, got {self.label} for both."
            )
        mask = self.mask_array()
        if self.gradients and mask is not None and not mask.any():
            raise SettingsError("Expected a region to compute gradients of, got 0 pixels: draw one, or do without.")
        return self

    def thinned(self, limits: Limits) -> "Settings":
        """The same with at most `limits.max_mask_pixels` of the region: of every second row and column, or fewer."""
        mask = self.mask_array()
        if mask is None or mask.sum() <= limits.max_mask_pixels:
            return self
        pixels, stride = np.argwhere(mask), 1
        kept = pixels
        while len(kept) > limits.max_mask_pixels:
            stride += 1
            begins, counts = np.unique(pixels % stride, axis=0, return_counts=True)
            kept = pixels[(pixels % stride == begins[counts.argmax()]).all(axis=1)]
        thin = np.zeros_like(mask)
        thin[tuple(kept.T)] = True
        return replace(self, mask=json.dumps(mask_to_runs(thin)))

    def specs(self, limits: Limits, attention: bool = True) -> list[Any]:
        """What is recorded; `attention` tells whether the model has any."""
        specs: list[Any] = [Samples(every=self.every)]
        if attention:
            specs.append(AttentionOutputs(every=self.every))
        if self.weights:
            specs.append(AttentionWeights(every=self.every))
        if self.layers:
            specs.append(Activations(layers=list(self.layers), every=self.every))
        if self.gradients:
            times = sorted({round(share * (self.steps - 1)) for share in (0.1, 0.4, 0.9)})
            specs.append(GradientVolume(mask=self.thinned(limits).mask_array(), steps=times))
            if self.layers:
                of_layers = (GradientMaps, GradientAttention)
                specs += [spec(layers=list(self.layers), mask=self.mask_array(), steps=times) for spec in of_layers]
        return specs

    def edits(self) -> list[Any]:
        """What is changed."""
        edits: list[Any] = [ChannelAblation(layer, channels=channel) for layer, channel in self.ablations]
        if self.switch_at is not None:
            edits.append(LabelSwitch(from_step=self.switch_at, to=self.switch_to))
        return edits
