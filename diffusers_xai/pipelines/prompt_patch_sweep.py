"""Patches between two prompts of any pipeline: all are rows of one call, and rows that are still alike are one."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.call import DenoiserCall
from diffusers_xai.denoisers.guidance import Guidance, guidance_of
from diffusers_xai.measures import Mask, as_mask, resize_mask
from diffusers_xai.pipelines.patch_sweep import PatchSite
from diffusers_xai.taps import copy_scheduler, edit_output, exclusive, force_eager, tap_call, tap_step
from diffusers_xai.taps.call import running_call


# Positions of tokens, which have no rows of images though their number may be equal.
_NO_ROWS = ("_ids", "rotary_emb", "freqs")


def count_steps(pipe: DiffusionPipeline, num_inference_steps: int) -> int:
    """How many steps a call of the pipeline makes: its scheduler's may be more than are asked for."""
    scheduler = copy_scheduler(pipe.scheduler)
    shifts = (
        scheduler.config.get("use_dynamic_shifting") and "mu" in inspect.signature(scheduler.set_timesteps).parameters
    )
    scheduler.set_timesteps(num_inference_steps, **({"mu": 1.0} if shifts else {}))
    return len(scheduler.timesteps)


@torch.no_grad()
def prompt_branches(
    pipe: DiffusionPipeline, prompt: str, arguments: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """The guidance branches of a pipeline's call, which is followed up to its network's first call.

    Raises:
        ValueError: If their order is not known.
    """
    denoiser = get_denoiser(pipe)
    found: list[Guidance] = []

    def begun(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        found.append(guidance_of(pipe, denoiser.layout, running_call(pipe).locals))
        raise _Begun

    with ExitStack() as stack:
        stack.enter_context(exclusive(*denoiser.components.values(), pipe.scheduler))
        for network in denoiser.components.values():
            stack.enter_context(tap_call(network, begun))
        stack.enter_context(suppress(_Begun))
        pipe(**(arguments or {}), prompt=prompt, output_type="pt")
    if not found or not found[0].is_known:
        raise ValueError(f"Expected a pipeline whose guidance branches are known, got {type(pipe).__name__}.")
    return found[0].branches


class _Begun(Exception):
    """The network is called: what a call is followed for is known."""


@torch.no_grad()
def prompt_patch_sweep(
    pipe: DiffusionPipeline,
    base: str,
    source: str,
    seed: int,
    sites: Sequence[PatchSite],
    *,
    source_seed: int | None = None,
    mask: Mask | None = None,
    arguments: Mapping[str, Any] | None = None,
    max_rows: int = 64,
) -> tuple[torch.Tensor, list[float]]:
    """Pictures of the run that is patched from, of that which is patched, and of the latter with each patch.

    What [`patch_sweep`] does for labels, for the prompts of any pipeline, whose own loop runs: all runs are rows of
    one call. Up to a site's first step its row is equal to the base's, so the network computes that one for both.
    With everything patched, a row is the source's bit for bit. Of more patches than `max_rows` holds, it is so up to
    rounding (1e-6): each call has a source of its own, and kernels round by the number of rows.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing).

    Args:
        pipe (`DiffusionPipeline`): A pipeline that takes a list of prompts and returns pictures.
        base (`str`): The prompt of the run that is patched.
        source (`str`): The prompt of the run that layers' outputs are taken from.
        seed (`int`): Of the noise.
        sites (`Sequence[PatchSite]`): A patch each.
        source_seed (`int`, *optional*): Of the source's noise; `seed` if `None`.
        mask (array of shape `(height, width)`, bool, *optional*): Where outputs are replaced, resized to each layer
            bilinearly. Everywhere if `None`.
        arguments (`Mapping[str, Any]`, *optional*): What else the call takes.
        max_rows (`int`, *optional*, defaults to 64): Runs in one call.

    Returns:
        `tuple`: float pictures in [-1, 1], `(2 + site, 3, height, width)`, the source first, then the base; and the
        timesteps.

    Raises:
        ValueError: If the pipeline takes no list of prompts or returns no pictures, a branch is none of its guidance,
            or a mask is given for a layer that does not cover the image.
        KeyError: If a name matches no layer.
        RuntimeError: If rows cannot be told apart.
    """
    denoiser = get_denoiser(pipe)
    paths = [tuple(denoiser.resolve_layers(site.layers)) for site in sites]
    modules = denoiser.resolve_layers([path for group in paths for path in group])
    together = max(1, max_rows - 2)
    found: list[torch.Tensor] = []
    for start in range(0, max(1, len(sites)), together):
        part = list(zip(sites, paths, strict=True))[start : start + together]
        rows = _Rows(pipe, part, None if mask is None else as_mask(mask))
        seeds = [seed if source_seed is None else source_seed, *[seed] * (1 + len(part))]
        with ExitStack() as stack:
            stack.enter_context(exclusive(*denoiser.components.values(), pipe.scheduler))
            for name, network in denoiser.components.items():
                stack.enter_context(force_eager(network))
                stack.enter_context(tap_call(network, partial(rows.narrow, name, network)))
                stack.enter_context(edit_output(network, rows.widen))
            for path, module in modules.items():
                stack.enter_context(edit_output(module, partial(rows.edit, path)))
            stack.enter_context(tap_step(pipe.scheduler, rows.stepped))
            output = pipe(
                **(arguments or {}),
                prompt=[source, *[base] * (1 + len(part))],
                generator=[torch.Generator().manual_seed(number) for number in seeds],
                output_type="pt",
            )
        pictures = output[0]
        if not isinstance(pictures, torch.Tensor) or pictures.shape[:2] != (2 + len(part), 3):
            raise ValueError(f"Expected a picture of each prompt, got {getattr(pictures, 'shape', type(pictures))}.")
        found += list(pictures.float().cpu() * 2 - 1)[2 if found else 0 :]
    return torch.stack(found), rows.timesteps


class _Rows:
    """The rows of a call: the source's, the base's, and one of each site; which are computed, and what is patched."""

    def __init__(self, pipe: DiffusionPipeline, sites: Sequence[tuple[PatchSite, tuple[str, ...]]], mask: Any):
        self._pipe, self._sites, self._mask = pipe, sites, mask
        self._layout = get_denoiser(pipe).layout
        self.timesteps: list[float] = []
        self._call = 0  # of the network, in the step
        self._branches: tuple[str | None, ...] = ()
        self._computed: list[int] = []

    @property
    def _step(self) -> int:
        return len(self.timesteps)

    def stepped(self, step: Any) -> None:
        """The scheduler has stepped."""
        self.timesteps.append(step.timestep)
        self._call = 0

    def narrow(self, name: str, network: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Leaves out the rows that are still the base's."""
        call = DenoiserCall(name, network, args, kwargs)
        given = call.given_sample
        runs = 2 + len(self._sites)
        if not isinstance(given, torch.Tensor) or len(given) % runs:
            raise RuntimeError(
                f"{type(network).__name__}: expected a sample of {runs} rows in every branch of guidance, got"
                f" {tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__}."
            )
        self._branches = self._names(len(given) // runs)
        self._call += 1
        self._computed = [0, 1, *(i for i, (site, _) in enumerate(self._sites, 2) if site.steps.start <= self._step)]
        index = torch.tensor([b * runs + row for b in range(len(self._branches)) for row in self._computed])

        def chosen(value: Any, key: str = "") -> Any:
            if isinstance(value, Mapping):
                return {name: chosen(item, name) for name, item in value.items()}
            if isinstance(value, (list, tuple)):
                return type(value)(chosen(item, key) for item in value)
            if not isinstance(value, torch.Tensor) or value.ndim == 0 or key.endswith(_NO_ROWS):
                return value
            return value[index.to(value.device)] if len(value) == len(given) else value

        return tuple(chosen(value) for value in args), {key: chosen(value, key) for key, value in kwargs.items()}

    def widen(self, output: torch.Tensor) -> torch.Tensor:
        """The output of all rows, from that of the computed ones."""
        each = len(self._computed)
        if len(output) != each * len(self._branches):
            raise RuntimeError(f"Expected {each * len(self._branches)} rows of the network, got {len(output)}.")
        runs = range(2 + len(self._sites))
        places = [self._computed.index(row) if row in self._computed else 1 for row in runs]
        index = [b * each + place for b in range(len(self._branches)) for place in places]
        return output[torch.tensor(index, device=output.device)]

    def edit(self, path: str, output: torch.Tensor) -> torch.Tensor:
        """Puts the source's output into the rows of the sites that patch this layer now."""
        chosen = [
            (self._computed.index(row), site.branch)
            for row, (site, paths) in enumerate(self._sites, 2)
            if path in paths and self._step in site.steps
        ]
        if not chosen:
            return output
        shape = (len(self._branches), len(self._computed))
        if len(output) % (shape[0] * shape[1]):  # frames may be rows, too
            raise RuntimeError(f"{path}: expected a multiple of {shape[0] * shape[1]} rows, got {len(output)}.")
        rows = output.unflatten(0, (*shape, -1)).clone()
        for place, only in chosen:
            for b, branch in enumerate(self._branches):
                if only in (None, branch):
                    rows[b, place] = torch.lerp(rows[b, place], rows[b, 0], self._amount(path, output))
        return rows.flatten(0, 2)

    def _names(self, count: int) -> tuple[str | None, ...]:
        """The guidance branches in a call; only where a site asks for one."""
        asked = {site.branch for site, _ in self._sites} - {None}
        if not asked:
            return (None,) * count
        guidance = guidance_of(self._pipe, self._layout, running_call(self._pipe).locals)
        names = guidance.of_call(self._call)
        if not guidance.is_known or len(names) != count or not asked <= set(guidance.branches):
            raise ValueError(f"Expected `branch` in {guidance.branches} or None, got {', '.join(map(str, asked))}.")
        return names

    def _amount(self, path: str, output: torch.Tensor) -> torch.Tensor:
        if self._mask is None:
            return torch.ones((), dtype=output.dtype, device=output.device)
        if output.ndim != 4:
            raise ValueError(
                f"{path}: expected an output that covers the image for a `mask`, got {tuple(output.shape)}."
            )
        return resize_mask(self._mask, *output.shape[-2:]).to(output)
