"""How `diffusers-xai profile --prompt` does what it is asked for: check, plan, sample, write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from skimage.measure import block_reduce

from diffusers_xai.cli.base import CommandError, Console
from diffusers_xai.cli.output import check_disk
from diffusers_xai.cli.profile_folder import save_profile
from diffusers_xai.cli.profile_request import ProfileRequest
from diffusers_xai.cli.prompts import prompt_switches
from diffusers_xai.cli.requests import layers_of_max_channels, region, resolve_ablations
from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.explainers import (
    Activations,
    AttentionOutputs,
    DecodedImages,
    GradientEnergy,
    GradientMaps,
    Samples,
    WordMaps,
)
from diffusers_xai.explainers.samples import SSIM_WINDOW
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.prompts import words_of
from diffusers_xai.recording import EditSpec, RecordingPlan, RecordSpec, plan, record
from diffusers_xai.recording.text import UnknownWordError


_PROBES = 16
# About how many steps to record, to decode and to differentiate, and how many bytes at most.
_RECORDED_STEPS, _PICTURES, _GRADIENT_STEPS, _BYTES = 100, 24, 10, 48e6


@dataclass(frozen=True)
class PromptRun:
    """One image of a prompt pipeline that is loaded.

    Args:
        request (`ProfileRequest`): What is asked for.
        pipe (`DiffusionPipeline`): The pipeline.
        arguments (`dict`): Those of its call, without the noise.
    """

    request: ProfileRequest
    pipe: DiffusionPipeline
    arguments: dict[str, Any]

    def write(self, console: Console) -> dict[str, Any]:
        """Samples and writes; returns what was made.

        Raises:
            CommandError, ValueError, KeyError, TypeError, RuntimeError: for what cannot be recorded, before sampling.
        """
        request, steps = self.request, self.arguments["num_inference_steps"]
        self.pipe.set_progress_bar_config(disable=True)
        needed = layers_of_max_channels(request.ablate, self.denoiser)
        layers = [*request.layers, *sorted(set(needed) - set(self.resolved(request.layers)))]
        planned = self.recordable(console, layers)
        pictures = [(spec, made) for spec, made in planned if isinstance(spec, DecodedImages)]
        every = request.every or _stride([entry for entry in planned if entry not in pictures], _RECORDED_STEPS)
        # Every picture stands beside a state, so its stride is a multiple of theirs.
        often = every if request.every else every * math.ceil(_stride(pictures, _PICTURES) / every)
        specs = [replace(spec, every=often if isinstance(spec, DecodedImages) else every) for spec, _ in planned]
        area, mask = self.region(planned)
        specs += self.gradients(mask, layers)
        check_disk(request.out, self.plan(specs).nbytes)
        switches = prompt_switches(request)
        self.plan([], [*self.ablations(None, mask), *switches])

        console.say(f"Sampling {steps} steps" + (f", recording every {every}th" if every > 1 else ""))
        self.pipe.set_progress_bar_config(**console.bar_options("Sampling"))
        profile = self.sample(specs)
        edits = [*self.ablations(profile, mask), *switches]
        edited = None
        if edits:
            console.say("Sampling again with the changes")
            compared = [spec for spec in specs if isinstance(spec, (Samples, DecodedImages))]
            edited = self.sample(compared, edits)
        console.say("Writing the profile and its report")
        guidance = self.arguments.get("guidance_scale")
        command = request.command(None, steps, every, guidance, request.box)
        written = save_profile(request.out, profile, edited, command, mask, area)
        return {
            "profile": str(request.out),
            "report": str(request.out / "report.html"),
            "bytes": written,
            "prompt": request.prompt,
            "seed": request.seed,
            "steps": steps,
            "every": every,
        }

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network."""
        return get_denoiser(self.pipe)

    def resolved(self, layers: Sequence[str]) -> list[str]:
        """Module paths of the layers that are asked for."""
        return list(self.denoiser.resolve_layers(layers)) if layers else []

    def recordable(self, console: Console, layers: list[str]) -> list[tuple[RecordSpec, RecordingPlan]]:
        """What to record of the run but for gradients, with what each would take at every step.

        What was not asked for by name, and cannot be recorded of this pipeline, is left out with a word.
        """
        words = list(self.request.words) or words_of(str(self.request.prompt))
        wanted: list[tuple[RecordSpec, bool]] = [(DecodedImages(), False), (AttentionOutputs(), False)]
        if words:
            wanted.append((WordMaps(words), bool(self.request.words)))
        if layers:
            wanted.append((Activations(layers=layers), True))
        planned = [self.planned_samples()]
        for spec, asked in wanted:
            planned += self._planned(spec, asked, console)
        return planned

    def _planned(self, spec: RecordSpec, asked: bool, console: Console) -> list[tuple[RecordSpec, RecordingPlan]]:
        """The spec and its plan; of words that were not asked for, those that a long prompt still has."""
        try:
            return [(spec, self.plan([spec]))]
        except UnknownWordError as error:
            if asked or not isinstance(spec, WordMaps):
                raise
            console.say(f"Left out: the map of {error.word!r}, which the text encoder is not given whole")
            rest = [word for word in spec.words if word != error.word]
            return self._planned(WordMaps(rest), asked, console) if rest else []
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            if asked:
                raise
            console.say(f"Left out: {' '.join(str(error.args[0] if error.args else error).split())}")
            return []

    def planned_samples(self) -> tuple[RecordSpec, RecordingPlan]:
        """The states, without SSIM where they are too small for it or no images."""
        made = self.plan([Samples(measures=())])  # a call that the pipeline refuses ends here
        positions = made.entries[0].arrays[0].shape[2:]
        fits = len(positions) > 1 and min(positions[-2:]) >= SSIM_WINDOW
        return (Samples() if fits else Samples(measures=())), made

    def region(self, planned: list[tuple[RecordSpec, RecordingPlan]]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The region of interest on the pictures, and on the samples: their pixels with a part of it."""
        if self.request.mask is None and self.request.box is None:
            return None, None
        sizes = {
            array.name: array.shape[-2:]
            for _, made in planned
            for entry in made.entries
            for array in entry.arrays
            if array.name in ("samples", "images")
        }
        height, width = sizes.get("images", sizes["samples"])
        area = region(self.request.mask, self.request.box, (height, width))
        block = (height // sizes["samples"][0], width // sizes["samples"][1])
        return area, None if area is None else block_reduce(area, block, np.max)

    def gradients(self, mask: np.ndarray | None, layers: list[str]) -> list[RecordSpec]:
        """Gradients of a region; without one there are none, which take many backward passes of a large network."""
        if mask is None or not self.request.gradients:
            return []
        every = max(math.ceil(self.arguments["num_inference_steps"] / _GRADIENT_STEPS), 1)
        specs: list[RecordSpec] = [GradientEnergy(mask=mask, of="noise", probes=_PROBES, every=every)]
        if layers:
            specs.append(GradientMaps(layers=layers, mask=mask, of="noise", every=every))
        return specs

    def ablations(self, intact: DiffusionProfile | None, mask: np.ndarray | None) -> list[EditSpec]:
        """The edits of `--ablate`; before there is an intact run, those that do not need it."""
        wanted = [(layer, channels) for layer, channels in self.request.ablate if intact or "max" not in channels]
        times = self.pipe.scheduler.config.get("num_train_timesteps", 1000)
        try:
            return list(resolve_ablations(wanted, self.denoiser, intact or DiffusionProfile({}), mask, times))
        except ValueError as error:
            raise CommandError(f"--ablate: {error}") from error

    def plan(self, specs: Sequence[RecordSpec], edits: Sequence[EditSpec] = ()) -> RecordingPlan:
        """What recording these would cost."""
        return plan(self.pipe, specs, edits, generator=self.noise(), **self.arguments)

    def sample(self, specs: Sequence[RecordSpec], edits: Sequence[EditSpec] = ()) -> DiffusionProfile:
        """Runs the pipeline once."""
        with record(self.pipe, specs, edits) as recording:
            self.pipe(generator=self.noise(), **self.arguments)
        if recording.profile is None:
            raise RuntimeError("Expected a profile of the run, got none.")
        return recording.profile

    def noise(self) -> torch.Generator:
        """The noise of the seed."""
        return torch.Generator().manual_seed(self.request.seed)


def _stride(planned: Sequence[tuple[RecordSpec, RecordingPlan]], count: int) -> int:
    """Every which step to record, for about `count` of them within the budget of bytes."""
    if not planned:
        return 1
    nbytes = sum(made.nbytes for _, made in planned)
    return max(math.ceil(planned[0][1].steps / count), math.ceil(nbytes / _BYTES), 1)
