"""Which channel made a part of an image (thesis fig. 5.12)."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.maps import region_or_middle
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.explainers import GradientMaps, Samples
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.measures import Mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb


TIME = 0.2  # part of the training's timesteps at which the gradient is asked; thesis: t = 200
LAYER = "ups.2.3"


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    layer: str | None = None,
) -> xr.Dataset:
    """Finds the channel of a layer that a region depends on most, and samples again without it.

    The channel is the one of the largest sum of |gradient| of the region's noise at t = 200. A random other channel is
    ablated beside it.

    Source: thesis fig. 5.12, eq. 4.1.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        mask (`(height, width)` bool): The region, such as an artifact; a square in the middle if `None`.
        layer (`str`, *optional*): Name of the layer; the last expanding block's output, or an attention layer, if
            `None`.

    Returns:
        `xarray.Dataset`: `channel` (seed), `images` of dims (seed, run, channel, height, width) with the runs
        `intact`, `ablated` and `random`, and `change` (seed, changed, part): mean absolute change of the ablated and
        the random run in the region and outside of it.
    """
    denoiser = get_denoiser(pipe)
    name = layer or (LAYER if LAYER in denoiser.aliases else list(denoiser.attention_outputs())[-1])
    path = next(iter(denoiser.resolve_layers([name])))
    region = region_or_middle(pipe, mask)
    time = timestep_at(pipe, TIME)

    def sample(part: list[int], record: list, edits: list) -> Any:
        what = [Samples(every=sampling.steps), *record]
        return sampling.profile(pipe, part, what, edits)

    def measure_batch(part: list[int]) -> xr.Dataset:
        intact = sample(part, [GradientMaps(layers=path, mask=region, of="noise", timesteps=[time])], [])
        gradients = f"gradient_maps/{path}"
        best = [intact.max_channel(gradients, timestep=time, absolute=True, sample=i) for i in range(len(part))]
        count = intact[gradients].sizes["channel"]
        chance = [_other_channel(seed, channel, count) for seed, channel in zip(part, best, strict=True)]
        states = [torch.from_numpy(intact["final_sample"].values)]
        for channels in (best, chance):
            edits = [[ChannelAblation(path, channels=channel)] for channel in channels]
            states.append(torch.from_numpy(sample(part, [], edits)["final_sample"].values))
        difference = [(state - states[0]).abs().mean(1).numpy() for state in states[1:]]
        change = [[d[:, region].mean(1), d[:, ~region].mean(1)] for d in difference]
        return xr.Dataset(
            {
                "channel": ("seed", best),
                "images": (("seed", "run", "rgb", "height", "width"), torch.stack(states, 1).numpy()),
                "change": (("changed", "part", "seed"), np.array(change)),
            },
            {"run": ["intact", "ablated", "random"], "changed": ["ablated", "random"], "part": ["inside", "outside"]},
        ).transpose("seed", ...)

    data = sampling.over_seeds(measure_batch, "origin of a region")
    return data.assign(mask=(("height", "width"), region)).assign_attrs(layer=path)


def _other_channel(seed: int, channel: int, count: int) -> int:
    return int(np.random.default_rng(seed).choice([other for other in range(count) if other != channel]))


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the intact and the ablated image, and the change, of the first three seeds."""
    data = result.data
    region = data["mask"].values.astype(bool)
    rows, names = [], []
    for seed in data["seed"].values[:3]:
        part = data.sel(seed=seed)
        images = {str(run): part["images"].sel(run=run).values for run in part["run"].values}
        change = np.abs(images["ablated"] - images["intact"]).mean(0)
        inside, outside = (float(part["change"].sel(changed="ablated", part=p)) for p in ("inside", "outside"))
        rows.append(
            [
                Tile(to_rgb(images["intact"]), "intact", outline=region),
                Tile(to_rgb(images["ablated"]), "ablated", caption=f"channel {int(part['channel'])}", outline=region),
                Tile(change, "change", caption=f"{inside:.2f} inside, {outside:.2f} outside", outline=region),
                Tile(to_rgb(images["random"]), "random", outline=region),
            ]
        )
        names.append(f"seed {int(seed)}")
    columns = ["intact", "without the channel", "what it changed", "without a random one"]
    return tile_grid(rows, columns, names, scale_title="absolute change")


EXPERIMENT = register(
    Experiment(
        "artifact",
        "Which channel made a part of the image",
        "The channel of a layer that the outlined region depends on most, by its gradient at t = 200, is ablated in a"
        " new run. The change should lie in the region, and be larger than that of a random channel.",
        "thesis fig. 5.12",
        measure,
        plot,
        seeds=8,
        steps=100,
        region="eyes",
    )
)
