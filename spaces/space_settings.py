"""What a visitor asks for: checked, turned into a request to the pipeline, and into a link and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import numpy as np

from diffusers_xai import (
    Activations,
    AttentionMaps,
    ChannelAblation,
    GradientMaps,
    GradientVolume,
    LabelSwitch,
    Samples,
    XAIPipeline,
)
from diffusers_xai.measures import mask_from_runs, mask_to_runs


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for on a machine that many share."""

    max_steps: int = 1000
    max_blocks: int = 6
    max_mask_pixels: int = 256
    max_ablations: int = 8
    max_bytes: int = 128 * 2**20
    max_seconds: float = 180.0
    confirm_seconds: float = 20.0
    queue: int = 16
    sessions: int = 64
    upload: int = 64 * 2**20


class SettingsError(ValueError):
    """A request that is refused; the text is for the visitor."""


@dataclass(frozen=True)
class Settings:
    """One run. `mask` is `mask_to_runs` as JSON text, so that settings can be compared and shared."""

    label: int | None = 0
    seed: int = 321
    steps: int = 100
    every: int = 10
    layers: tuple[str, ...] = ()
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
            raise SettingsError(f"Choose 1 to {limits.max_steps} steps, not {self.steps}.")
        if not 0 <= self.seed < 2**63:
            raise SettingsError("The noise seed is a whole number from 0 on.")
        if not 1 <= self.every <= self.steps:
            raise SettingsError(f"Record every 1 to {self.steps} steps, not every {self.every}.")
        if len(self.layers) > limits.max_blocks:
            raise SettingsError(f"Choose at most {limits.max_blocks} blocks at a time, not {len(self.layers)}.")
        if len(self.ablations) > limits.max_ablations:
            raise SettingsError(f"Mask at most {limits.max_ablations} channels, not {len(self.ablations)}.")
        if self.switch_at is not None and not 0 <= self.switch_at <= self.steps:
            raise SettingsError(f"Switch the label at a step from 0 to {self.steps}, not {self.switch_at}.")
        mask = self.mask_array()
        if self.gradients and mask is not None and not 1 <= mask.sum() <= limits.max_mask_pixels:
            raise SettingsError(
                f"The gradients are computed for 1 to {limits.max_mask_pixels} pixels; the mask holds {mask.sum()}."
                " Draw a smaller region, or leave the gradients out."
            )
        return self

    def specs(self) -> list[Any]:
        """What is recorded."""
        specs: list[Any] = [Samples(every=self.every), AttentionMaps(every=self.every)]
        if self.layers:
            specs.append(Activations(layers=list(self.layers), every=self.every))
        if self.gradients:
            times = sorted({round(share * (self.steps - 1)) for share in (0.1, 0.4, 0.9)})
            specs.append(GradientVolume(mask=self.mask_array(), steps=times))
            if self.layers:
                specs.append(GradientMaps(layers=list(self.layers), mask=self.mask_array(), steps=times))
        return specs

    def edits(self) -> list[Any]:
        """What is changed."""
        edits: list[Any] = [ChannelAblation(layer, channels=channel) for layer, channel in self.ablations]
        if self.switch_at is not None:
            edits.append(LabelSwitch(at=self.switch_at, to=self.switch_to))
        return edits

    def to_query(self) -> str:
        """The settings as the query of a link, `?seed=…`."""
        values: dict[str, Any] = {"seed": self.seed, "steps": self.steps, "every": self.every}
        if self.label is not None:
            values["label"] = self.label
        values["layers"] = ",".join(self.layers)
        values["gradients"] = int(self.gradients)
        if self.mask is not None:
            values["mask"] = self.mask
        if self.ablations:
            values["ablate"] = ",".join(f"{layer}:{channel}" for layer, channel in self.ablations)
        if self.switch_at is not None:
            values["switch"] = f"{self.switch_at}:{self.switch_to}"
        return "?" + urlencode(values)


def from_query(query: Mapping[str, str], pipe: XAIPipeline, default: Settings, limits: Limits) -> Settings:
    """The settings of a link; what it does not name is as in `default`.

    Raises:
        SettingsError: If the link is damaged, names what the model does not have, or asks for too much.
    """
    try:
        layers = query.get("layers")
        ablate = [pair.rsplit(":", 1) for pair in query.get("ablate", "").split(",") if pair]
        at, to = query["switch"].split(":") if "switch" in query else (None, "0")
        mask = default.mask
        if "mask" in query:
            runs = json.loads(query["mask"])
            if len(runs["runs"]) > 4096 or sum(runs["runs"]) > 2**16 or min(runs["runs"]) < 0:
                raise ValueError("mask")
            mask = json.dumps(mask_to_runs(mask_from_runs(runs)))
            if tuple(runs["size"]) != pipe._sample_shape[1:]:
                raise ValueError("mask")
        settings = Settings(
            label=int(query["label"]) if "label" in query and default.label is not None else default.label,
            seed=int(query.get("seed", default.seed)),
            steps=int(query.get("steps", default.steps)),
            every=int(query.get("every", default.every)),
            layers=default.layers if layers is None else tuple(name for name in layers.split(",") if name),
            gradients=query.get("gradients", str(int(default.gradients))) == "1",
            mask=mask,
            ablations=tuple((layer, int(channel)) for layer, channel in ablate),
            switch_at=None if at is None else int(at),
            switch_to=int(to),
        )
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise SettingsError("This link is damaged: the settings stay at their defaults.") from error
    known = set(dict(pipe.unet.named_modules())) | set(getattr(pipe.unet, "layer_aliases", {}))
    unknown = [
        layer for layer in (*settings.layers, *(layer for layer, _ in settings.ablations)) if layer not in known
    ]
    count = pipe.unet.config.get("num_class_embeds") or 1
    if unknown or not 0 <= (settings.label or 0) < count or not 0 <= settings.switch_to < count:
        raise SettingsError("This link names a layer or a label that the model does not have.")
    return settings.check(limits)
