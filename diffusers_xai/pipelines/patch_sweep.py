"""Patches of many layers and times in one pass: the steps before a patch are done once."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.labels import ClassLabels
from diffusers_xai.measures import Mask, as_mask, resize_mask
from diffusers_xai.pipelines.branching import BranchingRun, begin, predict_runs, step_runs
from diffusers_xai.pipelines.pipeline_xai import XAIPipeline
from diffusers_xai.taps import edit_output


def branches_of(guidance_scale: float) -> tuple[str, ...]:
    """The guidance branches of a run of labels, in the order of its rows."""
    return ("cond",) if guidance_scale == 1.0 else ("uncond", "cond")


@dataclass(frozen=True)
class PatchSite:
    """What is patched in one run.

    Args:
        layers (`str` or sequence of `str`): Module paths, aliases, or globs of either.
        steps (`range`): Indices of the patched steps, one after the other.
        branch (`str`, *optional*): The guidance branch, `"cond"` or `"uncond"`; both if `None`.
    """

    layers: str | Sequence[str]
    steps: range
    branch: str | None = None


@torch.no_grad()
def patch_sweep(
    pipe: XAIPipeline,
    base: ClassLabels | None,
    source: ClassLabels | None,
    seeds: Sequence[int],
    sites: Sequence[PatchSite],
    *,
    source_seeds: Sequence[int] | None = None,
    mask: Mask | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    max_rows: int = 64,
    callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], Any] | None = None,
) -> torch.Tensor:
    """Final states of the run that is patched from, of that which is patched, and of the latter with each patch.

    A run with `Patch(layers, source, steps=…)` equals the unpatched one up to the first patched step. So that one is
    done once and branched at each site's first step, and the source goes along: nothing is recorded.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing).

    Args:
        pipe ([`XAIPipeline`]): The model, with any scheduler.
        base (`int` or `dict[str, bool]`, *optional*): The label of the runs that are patched.
        source (`int` or `dict[str, bool]`, *optional*): The label of the runs that layers' outputs are taken from.
        seeds (`Sequence[int]`): One image for each.
        sites (`Sequence[PatchSite]`): A patch each.
        source_seeds (`Sequence[int]`, *optional*): Of the noise of the source, as many as `seeds`, which are taken if
            `None`.
        mask (array of shape `(height, width)` of the samples, bool, *optional*): Where outputs are replaced, resized
            to each layer bilinearly. Everywhere if `None`.
        num_inference_steps (`int`, *optional*): Number of denoising steps; as in a call of the pipeline if `None`.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        eta (`float`, *optional*, defaults to 0.0): η of DDIM; other schedulers ignore it.
        max_rows (`int`, *optional*, defaults to 64): Images in one call of the network, at least one run's.
        callback_on_step_end (`Callable`, *optional*): As of [`switch_sweep`], with the states of the source.

    Returns:
        `torch.Tensor` of shape `(2 + site, seed, channel, height, width)`: the source first, then the base.

    Raises:
        ValueError: If a label is none of the model's, a site's steps or branch are not the run's, or a mask is given
            for a layer that does not cover the image.
        KeyError: If a name matches no layer.
        RuntimeError: In the first step, if a layer does not run exactly once in it.
    """
    count = len(seeds)
    labels = [pipe.encode_labels(label, count, guidance_scale) for label in (source, base)]
    timesteps = begin(pipe, num_inference_steps)
    names = branches_of(guidance_scale)
    denoiser = get_denoiser(pipe)
    paths = [tuple(denoiser.resolve_layers(site.layers)) for site in sites]
    for site in sites:
        steps = site.steps
        if steps.step != 1 or not 0 <= steps.start < steps.stop <= len(timesteps):
            raise ValueError(f"Expected `steps` as a range within 0..{len(timesteps)}, got {steps}.")
        if site.branch not in (None, *names):
            raise ValueError(f"Expected `branch` in {names} or None, got {site.branch!r}.")
    if source_seeds is not None and len(source_seeds) != count:
        raise ValueError(f"Expected {count} `source_seeds`, as many as `seeds`, got {len(source_seeds)}.")
    patcher = _Patcher(count, names, None if mask is None else as_mask(mask, pipe.sample_shape[-2:]))
    original = pipe.scheduler
    first = BranchingRun.start(pipe, labels[0], seeds if source_seeds is None else source_seeds)
    second = BranchingRun.start(pipe, labels[1], seeds)
    patched: dict[int, BranchingRun] = {}
    together = max(1, max_rows // count)
    try:
        with ExitStack() as stack:
            for path, module in denoiser.resolve_layers([path for group in paths for path in group]).items():
                stack.enter_context(edit_output(module, partial(patcher.edit, path)))
            for i, t in enumerate(pipe.progress_bar(timesteps)):
                patched |= {k: second.branch(labels[1][0]) for k, site in enumerate(sites) if site.steps.start == i}
                patcher.watch()
                outputs = predict_runs(pipe, [first, second], t, guidance_scale)
                patcher.check(path for group in paths for path in group)
                numbers = list(patched)
                for start in range(0, len(numbers), together):
                    part = numbers[start : start + together]
                    patcher.patch([(paths[k], sites[k].branch) if i in sites[k].steps else ((), None) for k in part])
                    outputs += predict_runs(pipe, [patched[k] for k in part], t, guidance_scale)
                step_runs(pipe, [first, second, *patched.values()], outputs, t, eta)
                if callback_on_step_end is not None:
                    callback_on_step_end(pipe, i, t, {"sample": first.sample})
    finally:
        pipe.scheduler = original
    return torch.stack([run.sample for run in (first, second, *(patched[k] for k in range(len(sites))))])


class _Patcher:
    """Keeps the source's layers of the current step, and puts them into the rows of the patched runs."""

    def __init__(self, count: int, branches: Sequence[str], mask: Any):
        self._count, self._branches, self._mask = count, branches, mask
        self._kept: dict[str, torch.Tensor] = {}
        self._ran: list[str] = []
        self._runs: list[tuple[tuple[str, ...], str | None]] | None = None

    def watch(self) -> None:
        """The next call is that of the source and the base."""
        self._runs, self._ran = None, []

    def patch(self, runs: list[tuple[tuple[str, ...], str | None]]) -> None:
        """The next call is that of patched runs: the layers and the branch of each."""
        self._runs = runs

    def check(self, paths: Any) -> None:
        """Refuses layers that did not run exactly once in the watched call."""
        for path in set(paths):
            times = self._ran.count(path)
            if times != 1:
                raise RuntimeError(
                    f"Expected {path} to run once in this network's forward pass, it ran {times} times."
                )

    def edit(self, path: str, output: torch.Tensor) -> torch.Tensor:
        count = 2 if self._runs is None else len(self._runs)
        shape = (len(self._branches), count, self._count)
        if len(output) != shape[0] * shape[1] * shape[2]:
            raise RuntimeError(f"{path}: expected {shape[0] * shape[1] * shape[2]} rows, got {len(output)}.")
        rows = output.unflatten(0, shape)
        if self._runs is None:
            self._kept[path] = rows[:, 0].clone()
            self._ran.append(path)
            return output
        chosen = [(i, branch) for i, (paths, branch) in enumerate(self._runs) if path in paths]
        if not chosen:
            return output
        rows, kept = rows.clone(), self._kept[path]
        if self._mask is not None:
            amount = self._amount(path, output)
        for i, only in chosen:
            for b, branch in enumerate(self._branches):
                if only in (None, branch):
                    rows[b, i] = kept[b] if self._mask is None else torch.lerp(rows[b, i], kept[b], amount)
        return rows.flatten(0, 2)

    def _amount(self, path: str, output: torch.Tensor) -> torch.Tensor:
        if output.ndim != 4:
            raise ValueError(
                f"{path}: expected an output that covers the image for a `mask`, got {tuple(output.shape)}."
            )
        return resize_mask(self._mask, *output.shape[-2:]).to(output)
