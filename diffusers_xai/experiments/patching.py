"""Which layer carries a label or a prompt, and when: outputs of one run put into another."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from diffusers import DiffusionPipeline

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, register
from diffusers_xai.experiments.judging import Judge, Seen, judged_attributes, named_attributes, seen_attributes
from diffusers_xai.experiments.patch_effects import (
    ALL_BRANCHES,
    Sweep,
    bands_of,
    check_names,
    effects_of_patches,
    layers_to_patch,
    plot_effects,
    plot_patched,
    sites_of,
    table_of_effects,
)
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling, arguments_of, check_takes_prompt
from diffusers_xai.measures import Mask, as_mask, mask_to_runs, resize_mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.patch_sweep import PatchSite, branches_of, patch_sweep
from diffusers_xai.pipelines.prompt_patch_sweep import count_steps, prompt_branches, prompt_patch_sweep


PIXELS = "pixels"
BETWEEN = ("labels", "seeds")
EACH = "each"  # branch of guidance by itself


def measure(
    pipe: DiffusionPipeline,
    sampling: Sampling,
    *,
    prompts: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    layers: Sequence[str] | None = None,
    bands: int = 4,
    between: str = "labels",
    branch: str | None = None,
    mask: Mask | None = None,
    judge: Judge | Seen | None = None,
    null: str = "same-label",
    max_rows: int = 64,
) -> xr.Dataset:
    """Patches every layer in every band of the process, and measures how much of the other run comes over.

    The runs of the first label, or prompt, are patched with outputs of runs of the second one from the same noise. The
    effect of a patch is (m(patched) − m(base)) / (m(source) − m(base)): 0 of a patch that changes nothing, 1 of one
    that makes the run the source's. m is the nearness to the source's image (less the mean squared error to it), and
    with a judge also the probability of each attribute on which the labels differ.

    Source: Vig et al. 2020; Meng et al. 2022 (causal tracing).

    Args:
        pipe ([`XAIPipeline`] or `DiffusionPipeline`): A conditional model; with prompts, any pipeline that takes them.
        sampling ([`Sampling`]): What is sampled: the label that is patched, and the label that it is patched with.
        prompts (`Sequence[str]`, *optional*): In place of labels: the prompt that is patched, and the one that it is
            patched with; between seeds the first alone.
        arguments (`Mapping[str, Any]`, *optional*): With prompts, what else the pipeline's call takes, such as a size.
        layers (sequence of `str`, *optional*): Layers, each patched alone; if `None` the first convolution, the last
            layer of every block, and the last convolution, which is the network's whole answer.
        bands (`int`, defaults to 4): Equal parts of the process; besides, all of it.
        between (`str`, defaults to `"labels"`): `"seeds"` takes the source from the same label, or prompt, and
            another seed's noise; then there is one label or prompt, or none. The noise itself is no layer's output
            and stays: where the network predicts noise, even its whole answer does not make the run the source's.
        branch (`str`, *optional*): The guidance branch that is patched, `"cond"` or `"uncond"`; all if `None`.
            `"each"` patches every branch by itself, and all of them.
        mask (array of shape `(height, width)`, bool, *optional*): Where layers are patched; everywhere if `None`. The
            distance to the source is measured there, too. Of the samples' size; with prompts of any, and resized to
            the layers and the pictures.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes, see `Judge`; with
            prompts, the probability `(image,)` of anything by name. With prompts, and between seeds, what it sees in
            source and base alike in more than half of the seeds is left out.
        null (`str`): `"same-label"`: the same patches from runs of the *base's* label, or prompt, and other noise,
            which shows what is due to foreign activations and not to the label. Or `"none"`.
        max_rows (`int`, defaults to 64): Images in one call of the network, a branch of guidance each.

    Returns:
        `xarray.Dataset`: `effect` and `null_effect` of dims (seed, layer, band, of), NaN where source and base do not
        differ in the measure; the coordinates `start` and `stop` are the bands' steps. `whole` (run, rgb, height,
        width), the source and the base of the first seed, and `images` (layer, band, rgb, height, width), its patched
        runs. Of each branch, both have the dim `branch` before `layer`, at last `"all"`.

    Raises:
        ValueError: If the bands are more than the steps, there is a judge and the model's attributes have no names,
            labels or prompts are not as many as are compared, the run has no such branch, or one alone for `"each"`.
        KeyError: If a name matches no layer.
    """
    if between not in BETWEEN:
        raise ValueError(f"Expected between in {BETWEEN}, got {between!r}.")
    denoiser = get_denoiser(pipe)
    paths = layers_to_patch(denoiser, layers)
    base, other = _compared(sampling.labels, prompts, between)
    shift = 0 if between == "labels" else OTHER_NOISE
    options: dict[str, Any] = {"mask": mask, "max_rows": max_rows}
    branches: tuple[str, ...] = ()
    run: Callable[..., torch.Tensor]
    seen: Any
    if prompts is None:
        options["mask"] = mask = None if mask is None else as_mask(mask, pipe.sample_shape[-2:])
        pipe.scheduler.set_timesteps(sampling.steps)
        timesteps = [float(t) for t in pipe.scheduler.timesteps]
        parts = bands_of(len(timesteps), bands)
        if branch == EACH:
            branches = _several(branches_of(sampling.guidance_scale))
        sites = sites_of(paths, parts, [*branches, None] if branches else [branch])
        run = partial(_sweep_labels, pipe, sampling, base, sites, options)
        names = []
        if judge is not None:
            names = judged_attributes(pipe, sampling.labels) if between == "labels" else named_attributes(pipe)
            check_names(names, [PIXELS])
        told: Any = judge
        seen = None if judge is None else lambda images: seen_attributes(told, images, pipe, names)
        at_once = max(1, min(sampling.batch_size, max_rows // 4))
    else:
        check_takes_prompt("patching", pipe, arguments or {})
        mask = None if mask is None else as_mask(mask)
        parts, timesteps = bands_of(count_steps(pipe, sampling.steps), bands), []
        options["arguments"] = {**arguments_of(pipe, sampling), **(arguments or {})}
        if branch == EACH:
            branches = _several(prompt_branches(pipe, base, options["arguments"]))
        sites = sites_of(paths, parts, [*branches, None] if branches else [branch])
        run = partial(_sweep_prompts, pipe, base, sites, options, timesteps)
        seen, at_once = judge, 1
    null_sweep: Sweep | None = None if null == "none" else partial(run, base, 2 * OTHER_NOISE)
    near = {PIXELS: lambda images, goal: -_squared_error(images, goal, mask)}
    data = effects_of_patches(
        sampling,
        partial(run, other, shift),
        null_sweep,
        near,
        seen,
        [denoiser.short_name(path) for path in paths],
        parts,
        timesteps,
        at_once,
        [*branches, ALL_BRANCHES] if branches else [],
    )
    if prompts is not None or between == "seeds":
        told = data["effect"].notnull().all(["layer", "band", *(["branch"] if branches else [])]).mean("seed") > 0.5
        data = data.sel(of=told | (data["of"] == PIXELS))
    asked = {
        "prompts": None if prompts is None else list(prompts),
        "between": between,
        "branch": branch,
        "mask": None if mask is None else mask_to_runs(mask),
    }
    return data.assign_attrs({name: value for name, value in asked.items() if value is not None})


def _several(branches: tuple[str, ...]) -> tuple[str, ...]:
    """The branches, if there are several."""
    if len(branches) < 2:
        known = ", ".join(branches)
        raise ValueError(f"patching: expected a run with guidance for branch='{EACH}', got one with {known} alone.")
    return branches


def _compared(labels: Sequence[int], prompts: Sequence[str] | None, between: str) -> tuple[Any, Any]:
    """The label or prompt that is patched, and the source's; `None` of an unconditional model."""
    given: Sequence[Any] = labels if prompts is None else prompts
    kind = "label" if prompts is None else "prompt"
    if between == "seeds":
        if len(given) > 1 or (prompts is not None and not given):
            raise ValueError(f"patching: expected one {kind} between seeds, got {list(given)}.")
        base = given[0] if given else None
        return base, base
    if len(given) != 2 or given[0] == given[1]:
        raise ValueError(f"patching: expected two different {kind}s, got {list(given)}.")
    return given[0], given[1]


def _sweep_labels(
    pipe: XAIPipeline,
    sampling: Sampling,
    base: int | None,
    sites: Any,
    options: Any,
    source: int | None,
    shift: int,
    seeds: list[int],
) -> torch.Tensor:
    return patch_sweep(
        pipe, base, source, seeds, sites, num_inference_steps=sampling.steps, guidance_scale=sampling.guidance_scale,
        source_seeds=[seed + shift for seed in seeds] if shift else None, **options,
    )  # fmt: skip


def _sweep_prompts(
    pipe: DiffusionPipeline,
    base: str,
    sites: Sequence[PatchSite],
    options: Mapping[str, Any],
    timesteps: list[float],
    source: str,
    shift: int,
    seeds: list[int],
) -> torch.Tensor:
    """The pictures of the runs; their timesteps are told to `timesteps`."""
    found = []
    for seed in seeds:
        pictures, timesteps[:] = prompt_patch_sweep(
            pipe, base, source, seed, sites, source_seed=seed + shift, **options
        )
        found.append(pictures)
    return torch.stack(found, dim=1)


def _squared_error(images: torch.Tensor, goal: torch.Tensor, mask: np.ndarray | None) -> torch.Tensor:
    squares = (images.double() - goal.double()).square().mean(1)
    if mask is None:
        return squares.mean((1, 2))
    weights = resize_mask(mask, *squares.shape[1:]).double()
    return (squares * weights).sum((1, 2)) / weights.sum()


register(
    Experiment(
        "patching",
        "Which layer carries the label or the prompt, and when",
        "Two runs from the same noise with different labels, or prompts; or between seeds, with the same one and"
        " different noise. A layer's output, in a quarter of the process or in all of it, is taken from the other run,"
        " for one guidance branch, each or all, in a region or everywhere. The number tells how much of the other"
        " run comes over: 0 nothing, 1 all of it; bold where it is surely not 0 (t-test, of a judge's yes or no an"
        " exact paired test; 5 % after correction for all cells). First for the image as a whole, and with a"
        " judge for each attribute on which the labels differ, over the seeds in which it sees a difference. The first"
        " convolution takes a label in, and the last one is the network's whole answer. Below, the control: the same"
        " patches from a run of the same label and other noise, between seeds from a third one. The images are those"
        " of the first seed.",
        "Vig et al. 2020; Meng et al. 2022",
        measure,
        plot_effects,
        nulls=("same-label",),
        labels=2,
        seeds=16,
        steps=25,
        runs=47.0,
        plot_images=plot_patched,
        table=table_of_effects,
        judged=True,
        may_take="prompts",
    )
)
