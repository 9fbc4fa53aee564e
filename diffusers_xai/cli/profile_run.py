"""How `diffusers-xai profile` does what it is asked for: check, rehearse, sample, write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from diffusers_xai.checkpoints import name_of_embedded
from diffusers_xai.cli.base import CommandError, Console
from diffusers_xai.cli.options import spoken
from diffusers_xai.cli.output import check_disk, check_out, claimed
from diffusers_xai.cli.pipelines import (
    check_device,
    check_every,
    check_guidance,
    check_steps,
    load_pipeline,
    load_prompt_pipeline,
    num_threads,
    read_network_config,
    read_scheduler,
)
from diffusers_xai.cli.profile_folder import save_profile
from diffusers_xai.cli.profile_request import ProfileRequest
from diffusers_xai.cli.prompt_run import PromptRun
from diffusers_xai.cli.prompts import call_arguments, prompt_pipeline
from diffusers_xai.cli.requests import (
    chosen_label,
    layers_of_max_channels,
    region,
    resolve_ablations,
    resolve_switches,
    sample_size,
)
from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.explainers import (
    Activations,
    AttentionOutputs,
    GradientEnergy,
    GradientMaps,
    GradientVolume,
    Samples,
)
from diffusers_xai.interventions import ChannelAblation, LabelSwitch
from diffusers_xai.labels import label_bits
from diffusers_xai.passed import Scheduler
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.arguments import default_steps
from diffusers_xai.plots.style import layers_with_maps
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import EditSpec, RecordSpec


# Attention layers and block outputs, by their article-style names.
_LAYERS = ("downs.*.2.fn", "downs.*.3", "mid_attn.fn", "mid_block2", "ups.*.2.fn", "ups.*.3")
# The scheduler's step is the identity but for a little: the predicted noise shows more of the network.
_GRADIENTS_OF = "noise"
_PROBES = 16
_VOLUME_TIMES = (0.95, 0.6, 0.1)  # parts of the training's timesteps; thesis fig. 5.8
# About how many steps to record, and how many bytes at most.
_RECORDED_STEPS, _PROFILE_BYTES = 100, 48e6
_GRADIENT_STEPS, _GRADIENT_BYTES = 10, 16e6
_VOLUME_BYTES = 16e6


def make_profile(request: ProfileRequest, console: Console) -> dict[str, Any]:
    """Samples one image and writes its profile with a report.

    Returns:
        `dict`: What was made: the paths `profile` and `report`, its size in `bytes`, `label`, `seed`, `steps`, and
        every which step was recorded.

    Raises:
        CommandError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError, OSError: for a request that
            cannot be met; nothing is written then.
    """
    out = request.out
    with claimed(out):
        check_out(out, request.overwrite)
        if request.mask is not None:
            region(request.mask)  # before anything is downloaded
        check_device(request.device)
        kind = prompt_pipeline(request)
        if kind is not None:
            return _make_of_prompt(request, kind, console)
        setting = _check(request)
        if request.label is None and setting.label is not None and name_of_embedded(request.checkpoint) is None:
            classes = setting.config["num_class_embeds"]
            console.say(f"Label {setting.label_text}; --label chooses another of 0..{classes - 1}")
        console.say(f"Loading {spoken(request.checkpoint)}")
        run = _Run(request, setting, load_pipeline(request, setting.scheduler))
        with num_threads(request):
            return run.write(console)


@dataclass(frozen=True)
class _Setting:
    """What is known of a request before the weights are loaded."""

    config: dict[str, Any]
    scheduler: Scheduler
    steps: int
    calls: int  # some schedulers call the network twice in a step
    guidance: float
    label: int | None
    box: tuple[int, int, int, int] | None
    mask: np.ndarray | None
    switches: list[LabelSwitch]

    @property
    def label_text(self) -> str:
        """How the label is written: as bits where they have names."""
        return "" if self.label is None else label_bits(self.label, self.config.get("class_attributes") or ())


def _make_of_prompt(request: ProfileRequest, kind: type[DiffusionPipeline], console: Console) -> dict[str, Any]:
    arguments = call_arguments(request, kind)
    console.say(f"Loading {spoken(request.checkpoint)}")
    dtype = getattr(torch, request.dtype or "float32")
    run = PromptRun(request, load_prompt_pipeline(request, read_scheduler(request), dtype=dtype), arguments)
    with num_threads(request):
        return run.write(console)


def _check(request: ProfileRequest) -> _Setting:
    config, scheduler = read_network_config(request), read_scheduler(request)
    guidance = 1.0 if request.guidance_scale is None else request.guidance_scale
    check_guidance(guidance, config)
    steps = request.steps or default_steps(scheduler)
    check_steps(steps, scheduler)
    check_every(request.every, steps)
    scheduler.set_timesteps(steps)
    calls = len(scheduler.timesteps)
    label = chosen_label(request.label, config)
    size = sample_size(config)
    box = request.region_box(size)
    mask = region(request.mask, box, size)
    switches = resolve_switches(request.switch, label, config, calls)
    return _Setting(config, scheduler, steps, calls, guidance, label, box, mask, switches)


@dataclass(frozen=True)
class _Run:
    request: ProfileRequest
    setting: _Setting
    pipe: XAIPipeline

    @property
    def train_timesteps(self) -> int:
        return self.setting.scheduler.config.get("num_train_timesteps", 1000)

    @cached_property
    def denoiser(self) -> Denoiser:
        return get_denoiser(self.pipe)

    @cached_property
    def layers(self) -> list[str]:
        """What to record, and what a max channel is looked up in."""
        denoiser = self.denoiser
        default = _LAYERS if denoiser.aliases else denoiser.attention_outputs()
        layers = self.request.layers or tuple(default)
        needed = layers_of_max_channels(self.request.ablate, denoiser)
        return [*layers, *sorted(set(needed) - set(denoiser.resolve_layers(layers) if layers else {}))]

    @cached_property
    def all_bytes(self) -> int:
        """The size of a profile of every step."""
        return self.planned_bytes(self.states(every=1))

    @cached_property
    def every(self) -> int:
        """Every which step to record."""
        return self.request.every or self.stride(_RECORDED_STEPS, _PROFILE_BYTES)

    def write(self, console: Console) -> dict[str, Any]:
        request, setting = self.request, self.setting
        gradients = self.gradients()
        volume = self.volume()
        if gradients and (request.box or request.mask) and not volume:
            console.say("The region is too large for its gradient volume: only the energy is estimated")
        self.rehearse(gradients)
        record = [*self.states(self.every), *gradients, *volume]
        check_disk(request.out, self.planned_bytes(record))

        often = f", recording every {self.every}th" if self.every > 1 else ""
        console.say(f"Sampling {setting.steps} steps{often}")
        self.pipe.set_progress_bar_config(**console.bar_options("Sampling"))
        profile = self.sample(setting.steps, record)
        edits = [*self.ablations(profile), *setting.switches]
        edited = None
        if edits:
            console.say("Sampling again with the changes")
            edited = self.sample(setting.steps, [Samples(every=self.every)], edits)
        console.say("Writing the profile and its report")
        written = self.save(profile, edited)
        return {
            "profile": str(request.out),
            "report": str(request.out / "report.html"),
            "bytes": written,
            "label": setting.label,
            "seed": request.seed,
            "steps": setting.steps,
            "every": self.every,
        }

    def rehearse(self, gradients: list[RecordSpec]) -> None:
        """One step shows what is wrong with the request before the long run."""
        self.pipe.set_progress_bar_config(disable=True)
        profile = self.sample(1, [*self.states(every=1), *gradients])
        for layer in layers_with_maps(profile) if self.setting.mask is not None else []:
            try:
                profile.max_channel(layer, step=0, mask=self.setting.mask)
            except ValueError as error:
                raise CommandError(f"the region does not fit {layer}: {error}") from error
        if self.request.ablate:
            self.sample(1, [Samples()], self.ablations(profile))

    def sample(self, steps: int, record: list[RecordSpec], edits: Sequence[EditSpec] = ()) -> DiffusionProfile:
        output: Any = self.pipe(
            class_labels=None if self.setting.label is None else [self.setting.label],
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(self.request.seed)],
            guidance_scale=self.setting.guidance,
            record=record,
            edits=edits,
        )
        return output.profile

    def ablations(self, intact: DiffusionProfile) -> list[ChannelAblation]:
        mask, times = self.setting.mask, self.train_timesteps
        return resolve_ablations(self.request.ablate, self.denoiser, intact, mask, times)

    def states(self, every: int) -> list[RecordSpec]:
        """What to record of the samples and the layers."""
        specs: list[RecordSpec] = [Samples(every=every)]
        if self.denoiser.attention_outputs():
            specs.append(AttentionOutputs(every=every))
        if self.layers:
            specs.append(Activations(layers=self.layers, every=every))
        return specs

    def gradients(self) -> list[RecordSpec]:
        """What to record of the gradients, but for the volume."""
        if not self.request.gradients:
            return []
        mask, every = self.setting.mask, self.stride(_GRADIENT_STEPS, _GRADIENT_BYTES)
        specs: list[RecordSpec] = [GradientEnergy(mask=mask, of=_GRADIENTS_OF, probes=_PROBES, every=every)]
        if self.layers:
            specs.append(GradientMaps(layers=self.layers, mask=mask, of=_GRADIENTS_OF, every=every))
        return specs

    def volume(self) -> list[RecordSpec]:
        """The gradient volume of the region, if it is not too large."""
        mask = self.setting.mask
        if mask is None or not self.request.gradients:
            return []
        times = [time * self.train_timesteps for time in _VOLUME_TIMES]
        volume = GradientVolume(mask=mask, of=_GRADIENTS_OF, timesteps=times)
        return [volume] if self.planned_bytes([volume]) <= _VOLUME_BYTES else []

    def planned_bytes(self, record: list[RecordSpec]) -> int:
        setting = self.setting
        plan = self.pipe.plan(record, num_inference_steps=setting.steps, guidance_scale=setting.guidance)
        return plan.nbytes

    def stride(self, count: int, budget: float) -> int:
        """Every which step to record, for about `count` of them within `budget` bytes."""
        return max(self.setting.calls // count, math.ceil(self.all_bytes / budget), 1)

    def save(self, profile: DiffusionProfile, edited: DiffusionProfile | None) -> int:
        """Writes the folder; returns its size in bytes."""
        request, setting = self.request, self.setting
        label = None if setting.label is None else request.label or setting.label_text
        command = request.command(label, setting.steps, self.every, setting.guidance, setting.box)
        return save_profile(request.out, profile, edited, command, setting.mask, setting.mask)
