"""Which channel made a part of an image (thesis fig. 5.12)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.base import provenance
from diffusers_xai.experiments.region import region_or_middle
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.experiments.seeds import over_seeds, profile_of
from diffusers_xai.explainers import GradientMaps, Samples
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.measures import Mask
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import Tile, tile_grid, to_rgb


TIME = 0.2  # part of the training's timesteps at which the gradient is asked; thesis: t = 200
LAYER = "ups.2.3"


def run(
    pipe: XAIPipeline,
    *,
    labels: Sequence[int] = (),
    seeds: Sequence[int] = range(8),
    num_inference_steps: int = 100,
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    mask: Mask | None = None,
    layer: str | None = None,
) -> ExperimentResult:
    """Finds the channel of a layer that a region depends on most, and samples again without it.

    The channel is the one of the largest sum of |gradient| of the region's noise at t = 200. A random other channel is
    ablated beside it.

    Source: thesis fig. 5.12, eq. 4.1.4.

    Args:
        pipe ([`XAIPipeline`]): The model.
        labels (`Sequence[int]`): The label; none for an unconditional model.
        seeds (`Sequence[int]`): One run for each.
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Runs at a time.
        mask (`(height, width)` bool): The region, such as an artifact; a square in the middle if `None`.
        layer (`str`, *optional*): Name of the layer; the last expanding block's output, or an attention layer, if
            `None`.

    Returns:
        `ExperimentResult`: `channel` (seed), `images` of dims (seed, run, channel, height, width) with the runs
        `intact`, `ablated` and `random`, and `change` (seed, changed, part): mean absolute change of the ablated and
        the random run in the region and outside of it.
    """
    denoiser = get_denoiser(pipe)
    name = layer or (LAYER if LAYER in denoiser.aliases else list(denoiser.attention_outputs())[-1])
    path = next(iter(denoiser.resolve_layers([name])))
    region = region_or_middle(pipe, mask)
    time = TIME * pipe.scheduler.config.get("num_train_timesteps", 1000)

    def sample(part: list[int], record: list, edits: list) -> Any:
        what = [Samples(every=num_inference_steps), *record]
        return profile_of(pipe, labels, part, num_inference_steps, guidance_scale, what, edits)

    def measure(part: list[int]) -> xr.Dataset:
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

    data = over_seeds(measure, seeds, batch_size=batch_size, description="origin of a region")
    settings = provenance(
        pipe, seeds, labels=list(labels), num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        layer=path,
    )  # fmt: skip
    return ExperimentResult("artifact", data.assign(mask=(("height", "width"), region)), settings)


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
