"""Which layer, and which moment, makes the layout, the label and the colours (the hierarchy of Yang et al.)."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from diffusers_xai.analysis.structure import edge_strength
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, register
from diffusers_xai.experiments.judging import Judge, judged_attributes, seen_attributes
from diffusers_xai.experiments.patch_effects import (
    bands_of,
    check_names,
    effects_of_patches,
    layers_to_patch,
    plot_effects,
    plot_patched,
    sites_of,
    table_of_effects,
)
from diffusers_xai.experiments.sampling import OTHER_NOISE, Sampling
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.patch_sweep import patch_sweep


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    bands: int = 4,
    judge: Judge | None = None,
    null: str = "same-label",
    max_rows: int = 64,
) -> xr.Dataset:
    """Patches every layer in every band from a run of other noise and another label, and tells what comes over.

    The effect of a patch is (m(patched) − m(base)) / (m(source) − m(base)). m is the nearness to the source's image in
    layout (see `layout_nearness`) and in colours (see `color_nearness`), and with a judge the probability of each
    attribute on which the labels differ.

    Source: Yang et al. 2021, *Semantic Hierarchy Emerges in Deep Generative Representations*; there by layer, here by
    layer and time.

    Args:
        pipe ([`XAIPipeline`]): A conditional model.
        sampling ([`Sampling`]): What is sampled: the label that is patched, and the label that it is patched with,
            from another seed.
        layers (sequence of `str`, *optional*): Layers, each patched alone; by default as in `patching`.
        bands (`int`, defaults to 4): Equal parts of the process; besides, all of it.
        judge (`Callable`, *optional*): Tells the probability of each of the model's attributes, see `Judge`.
        null (`str`): `"same-label"`: the same patches from a third seed's run of the base's label, whose effects
            towards the source are due to foreign activations alone. Or `"none"`.
        max_rows (`int`, defaults to 64): Images in one call of the network.

    Returns:
        `xarray.Dataset`: As of `patching`, the measures being `layout`, `colours` and the attributes.

    Raises:
        ValueError: If the bands are more than the steps, or there is a judge and the model's attributes have no names.
        KeyError: If a name matches no layer.
    """
    denoiser = get_denoiser(pipe)
    paths = layers_to_patch(denoiser, layers)
    pipe.scheduler.set_timesteps(sampling.steps)
    timesteps = [float(t) for t in pipe.scheduler.timesteps]
    parts = bands_of(len(timesteps), bands)
    sites = sites_of(paths, parts)
    base, source = sampling.labels
    names = [] if judge is None else judged_attributes(pipe, sampling.labels)
    near = {"layout": layout_nearness, "colours": color_nearness}
    check_names(names, near)

    def sweep(label: int, shift: int, seeds: list[int]) -> torch.Tensor:
        return patch_sweep(
            pipe, base, label, seeds, sites, num_inference_steps=sampling.steps, max_rows=max_rows,
            guidance_scale=sampling.guidance_scale, source_seeds=[seed + shift for seed in seeds],
        )  # fmt: skip

    return effects_of_patches(
        sampling,
        lambda seeds: sweep(source, OTHER_NOISE, seeds),
        None if null == "none" else lambda seeds: sweep(base, 2 * OTHER_NOISE, seeds),
        near,
        None if judge is None else lambda images: seen_attributes(judge, images, pipe, names),
        [denoiser.short_name(path) for path in paths],
        parts,
        timesteps,
        max(1, min(sampling.batch_size, max_rows // 4)),
    )


def layout_nearness(images: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """How alike the edges lie: correlation of the luminance's edge strength over the places, in [-1, 1].

    Args:
        images (`torch.Tensor` of shape `(image, channel, height, width)`): Images.
        goal (`torch.Tensor` of that shape): What each of them is compared with.
    """
    edges = [edge_strength(array.double().numpy()).reshape(len(array), -1) for array in (images, goal)]
    centred = [array - array.mean(1, keepdims=True) for array in edges]
    one, other = (array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12) for array in centred)
    return torch.from_numpy((one * other).sum(1))


def color_nearness(images: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """How alike the colours are, wherever they lie: less Wasserstein's distance of the values, mean of the channels.

    Args:
        images (`torch.Tensor` of shape `(image, channel, height, width)`): Images.
        goal (`torch.Tensor` of that shape): What each of them is compared with.
    """
    one, other = (array.double().flatten(2).sort(dim=2).values for array in (images, goal))
    return -(one - other).abs().mean((1, 2))


register(
    Experiment(
        "hierarchy",
        "Which layer makes the layout, the label and the colours",
        "A layer's output, in a quarter of the process or in all of it, is taken from a run of other noise and"
        " another label. The number tells how much of that run's image comes over: 0 nothing, 1 all of it; bold where"
        " it is surely not 0 (t-test, of a judge's yes or no an exact paired test; 5 % after correction for all"
        " cells). Layout is how alike the edges lie, colours how alike the pixels' values are wherever they lie; with"
        " a judge, the attributes on which the labels differ are seen too. Below, the control: the same patches from a"
        " third run, of the base's label and noise of its own, which has nothing of the source. The images are those"
        " of the first seed.",
        "Yang et al. 2021, there by layer alone",
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
    )
)
