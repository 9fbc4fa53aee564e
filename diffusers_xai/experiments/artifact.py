"""Which channel made a part of an image (thesis fig. 5.12)."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import GradientMaps, Samples
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.measures import Mask
from diffusers_xai.measures.masks import region_or_middle
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


TIME = 0.2  # part of the training's timesteps at which the gradient is asked; thesis: t = 200
LAYER = "ups.2.3"


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    mask: Mask | None = None,
    layer: str | None = None,
    null: str = "random-channel",
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
        null (`str`): `"random-channel"`, or `"none"` to ablate the one channel alone.

    Returns:
        `xarray.Dataset`: `channel`, `inside` and `outside` (seed): mean absolute change of the ablated run in the
        region and outside of it; `null_inside` and `null_outside` are those of the random run. Of the first three
        seeds, `images` of dims (shown, run, channel, height, width) with the runs `intact`, `ablated` and `random`.
    """
    denoiser = get_denoiser(pipe)
    name = layer or (LAYER if LAYER in denoiser.aliases else telling_layers(denoiser)[-1])
    path = next(iter(denoiser.resolve_layers([name])))
    region = region_or_middle(mask, pipe.sample_shape[-2:])
    time = timestep_at(pipe, TIME)

    def sample(part: list[int], record: list, edits: list) -> Any:
        what = [Samples(every=sampling.steps), *record]
        return sampling.profile(pipe, part, what, edits)

    def measure_batch(part: list[int]) -> xr.Dataset:
        intact = sample(part, [GradientMaps(layers=path, mask=region, of="noise", timesteps=[time])], [])
        gradients = f"gradient_maps/{path}"
        best = [intact.max_channel(gradients, timestep=time, absolute=True, sample=i) for i in range(len(part))]
        count = intact[gradients].sizes["channel"]
        ablated = {"": best}
        if null == "random-channel":
            ablated["null_"] = [_other_channel(seed, channel, count) for seed, channel in zip(part, best, strict=True)]
        states = [torch.from_numpy(intact["final_sample"].values)]
        for channels in ablated.values():
            edits = [[ChannelAblation(path, channels=channel)] for channel in channels]
            states.append(torch.from_numpy(sample(part, [], edits)["final_sample"].values))
        change = {}
        for prefix, state in zip(ablated, states[1:], strict=True):
            difference = (state - states[0]).abs().mean(1).numpy()
            change[f"{prefix}inside"] = ("seed", difference[:, region].mean(1))
            change[f"{prefix}outside"] = ("seed", difference[:, ~region].mean(1))
        return xr.Dataset(
            {
                "channel": ("seed", best),
                "images": (("seed", "run", "rgb", "height", "width"), torch.stack(states, 1).numpy()),
                **change,
            },
            {"run": ["intact", "ablated", "random"][: len(states)]},
        )

    data = sampling.over_seeds(measure_batch, "origin of a region", of_few=["images"])
    return data.assign(mask=(("height", "width"), region)).assign_attrs(layer=path)


def _other_channel(seed: int, channel: int, count: int) -> int:
    return int(np.random.default_rng(seed).choice([other for other in range(count) if other != channel]))


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the intact and the ablated image, and the change, of the first three seeds."""
    data = result.data
    region = data["mask"].values.astype(bool)
    rows, names = [], []
    for seed in data["shown"].values:
        part = data.sel(seed=seed, shown=seed)
        images = {str(run): part["images"].sel(run=run).values for run in part["run"].values}
        change = np.abs(images["ablated"] - images["intact"]).mean(0)
        caption = f"{float(part['inside']):.2f} inside, {float(part['outside']):.2f} outside"
        row = [
            Tile(to_rgb(images["intact"]), "intact", outline=region),
            Tile(to_rgb(images["ablated"]), "ablated", caption=f"channel {int(part['channel'])}", outline=region),
            Tile(change, "change", caption=caption, outline=region),
        ]
        if "random" in images:
            row.append(Tile(to_rgb(images["random"]), "random", outline=region))
        rows.append(row)
        names.append(f"seed {int(seed)}")
    columns = ["intact", "without the channel", "what it changed", "control: a random one"]
    return tile_grid(rows, columns[: len(rows[0])], names, scale_title="absolute change")


def table(result: ExperimentResult) -> pd.DataFrame:
    """Mean absolute change in the region and outside of it, beside that of a random channel."""
    rows = [{"change": name, **excess_columns(result.data, name)} for name in ("inside", "outside")]
    return in_table(rows)


register(
    Experiment(
        "artifact",
        "Which channel made a part of the image",
        "The channel of a layer that the outlined region depends on most, by its gradient at t = 200, is ablated in a"
        " new run. The change should lie in the region, and be larger than that of a random channel.",
        "thesis fig. 5.12",
        measure,
        plot,
        nulls=("random-channel",),
        seeds=8,
        steps=100,
        runs=3.0,
        region="eyes",
        table=table,
    )
)
