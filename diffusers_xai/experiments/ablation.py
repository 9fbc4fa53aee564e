"""What the most active channel of each layer is worth (thesis fig. 5.10, 5.11, tables 5.1, 5.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import xarray as xr

from diffusers_xai.analysis import paired_difference, summary
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import dots
from diffusers_xai.experiments.sampling import Sampling, timestep_at
from diffusers_xai.experiments.tables import Q, in_table, interval_text
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.interventions import ChannelAblation
from diffusers_xai.measures import Mask, as_mask, structural_similarity
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_rows
from diffusers_xai.profile.pictures import to_rgb


# Block outputs and attention layers by their article-style names.
LAYERS = ("downs.*.3", "mid_block2", "ups.*.3", "downs.*.2.fn", "mid_attn.fn", "ups.*.2.fn")
TIME = 0.2  # part of the training's timesteps at which c* is looked up; thesis: t = 200


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    random_channels: int = 2,
    mask: Mask | None = None,
    null: str = "random-channel",
) -> xr.Dataset:
    """Ablates c* of every layer at every step, and as many random channels of the same layer, one at a time.

    c* is the channel of the largest sum over the mask at t = 200 of the intact run. All ablations of a seed are
    variants of the same noise, many in one batch.

    Source: thesis alg. 6, eq. 4.1.4, tables 5.1, 5.2.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`Sequence[str]`, *optional*): Globs of layers; block outputs and attention layers if `None`.
        random_channels (`int`): Random channels of each layer, other than c*.
        mask (`(height, width)` bool, *optional*): Where c* is looked for; the whole image if `None`.
        null (`str`): `"random-channel"`, or `"none"` to ablate c* alone.

    Returns:
        `xarray.Dataset`: `ssim` to the intact image and `channel` of dims (seed, layer), `null_ssim` and
        `null_channel` of dims (seed, layer, draw); coordinates `kind` (block or attention) and `channels` on `layer`.
        Of the first seed, the final states: `intact` (rgb, height, width), and `ablated` (layer, rgb, height, width)
        without c*.
    """
    denoiser = get_denoiser(pipe)
    random_channels = 0 if null == "none" else random_channels
    wanted = list(layers) if layers is not None else list(LAYERS) if denoiser.aliases else telling_layers(denoiser)
    attention = set(denoiser.attention_outputs())
    paths = sorted(denoiser.resolve_layers(wanted), key=lambda path: path in attention)  # blocks, then attention
    time = timestep_at(pipe, TIME)
    mask = None if mask is None else as_mask(mask, pipe.sample_shape[-2:])

    def measure_batch(part: list[int]) -> xr.Dataset:
        (seed,) = part
        what = [Samples(every=sampling.steps), Activations(layers=paths, timesteps=[time])]
        intact = sampling.profile(pipe, part, what)
        widths = {path: intact[f"activations/{path}"].sizes["channel"] for path in paths}
        draw = np.random.default_rng(seed)
        channels = []
        for path in paths:
            best = intact.max_channel(path, timestep=time, mask=mask)
            others = draw.permutation([c for c in range(widths[path]) if c != best])[:random_channels]
            channels.append([best, *others.tolist(), *[-1] * (random_channels - len(others))])
        variants = [
            (layer, draw_index, channel)
            for layer, row in enumerate(channels)
            for draw_index, channel in enumerate(row)
            if channel >= 0
        ]
        ssim = np.full((len(paths), 1 + random_channels), np.nan)
        whole = torch.from_numpy(intact["final_sample"].values)
        ablated = np.empty((len(paths), *whole.shape[1:]), dtype=np.float32)
        for start in range(0, len(variants), sampling.batch_size):
            batch = variants[start : start + sampling.batch_size]
            edits = [[ChannelAblation(paths[layer], channels=channel)] for layer, _, channel in batch]
            changed = sampling.profile(pipe, part, [Samples(every=sampling.steps)], edits)
            final = torch.from_numpy(changed["final_sample"].values)
            values = structural_similarity(whole.expand_as(final), final)
            for (layer, draw_index, _), value, image in zip(batch, values.tolist(), final.numpy(), strict=True):
                ssim[layer, draw_index] = value
                if draw_index == 0:
                    ablated[layer] = image
        coords = {
            "layer": [denoiser.short_name(path) for path in paths],
            "kind": ("layer", ["attention" if path in attention else "block" for path in paths]),
            "channels": ("layer", [widths[path] for path in paths]),
        }
        dims, picture = ("seed", "layer"), ("rgb", "height", "width")
        numbers = np.array(channels)
        data = xr.Dataset(
            {
                "ssim": (dims, ssim[None, :, 0]),
                "channel": (dims, numbers[None, :, 0]),
                "intact": (("seed", *picture), whole.numpy()),
                "ablated": ((*dims, *picture), ablated[None]),
            },
            coords,
        )
        if random_channels:
            data["null_ssim"] = (*dims, "draw"), ssim[None, :, 1:]
            data["null_channel"] = (*dims, "draw"), numbers[None, :, 1:]
        return data

    pictures = ["intact", "ablated"]
    data = sampling.over_seeds(measure_batch, "channel ablations", seeds_at_once=1, of_first=pictures)
    return data.assign_attrs(masked=mask is not None)


def table(result: ExperimentResult) -> pd.DataFrame:
    """SSIM to the intact image, layer by layer: after c*, after random channels, and how much more c* hurts.

    Source: thesis tables 5.1, 5.2.
    """
    ssim = result.data["ssim"]
    columns = {"c*": summary(ssim)}
    if "null_ssim" in result.data:
        random = result.data["null_ssim"].mean("draw")
        columns |= {"random channel": summary(random), "excess": paired_difference(random, ssim)}
    data: dict[str, Any] = {
        "layer": ssim["layer"].values,
        "kind": ssim["kind"].values,
        "channels": ssim["channels"].values,
    }
    for name, facts in columns.items():
        data[name] = [interval_text(facts.isel(layer=i)) for i in range(ssim.sizes["layer"])]
    if "excess" in columns:
        data[Q] = columns["excess"]["p_value"].values
    return in_table(data)


def plot(result: ExperimentResult) -> go.Figure:
    """Draws, layer by layer, SSIM to the intact image after c* and after a random channel is ablated."""
    data = result.data
    layers = data["layer"].values.tolist()
    rows = [f"{layer}  ({int(width)} channels)" for layer, width in zip(layers, data["channels"].values, strict=True)]
    figure = go.Figure()
    groups = [("c*, the most active channel", data["ssim"], LINE_COLORS[1], "diamond", -0.12)]
    if "null_ssim" in data:
        random = data["null_ssim"].mean("draw")
        groups.append(("control: a random channel", random, MUTED_COLOR, "circle-open", 0.12))
    dots(figure, groups)
    kinds = data["kind"].values.tolist()
    for i in range(1, len(kinds)):
        if kinds[i] != kinds[i - 1]:
            figure.add_hline(i - 0.5, line={"color": MUTED_COLOR, "width": 1, "dash": "dot"})
    figure.update_layout(
        template=TEMPLATE,
        height=120 + 30 * len(rows),
        xaxis={
            "title": "SSIM to the intact image (1: the channel is worth nothing)",
            # Of a few seeds an interval may be wider than all that SSIM can be.
            "autorangeoptions": {"clipmin": -0.1, "clipmax": 1.02},
        },
        yaxis={"tickvals": list(range(len(rows))), "ticktext": rows, "autorange": "reversed", "automargin": True},
    )
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the intact image of the first seed, and the image without the channel c* of each layer."""
    data = result.data
    ssim, channels = (data[name].isel(seed=0).values for name in ("ssim", "channel"))
    tiles = [Tile(to_rgb(data["intact"].values), "intact", "intact")]
    for layer, image, value, channel in zip(data["layer"].values, data["ablated"].values, ssim, channels, strict=True):
        tiles.append(Tile(to_rgb(image), f"{layer} without channel {channel}", f"{layer}: SSIM {value:.2f}"))
    return tile_rows(tiles, 5)


register(
    Experiment(
        "ablation",
        "What the most active channel of a layer is worth",
        "In each layer the channel c* that is most active at t = 200 is set to zero at every step, and so are random"
        " channels of the same layer, each in a run of its own. The lower the SSIM to the intact image, the more the"
        " image needed the channel. Where the two intervals overlap, c* matters no more than chance. The images are"
        " those of the first seed, without c* of each layer.",
        "thesis eq. 4.1.4, alg. 6, fig. 5.10, 5.11, tables 5.1, 5.2",
        measure,
        plot,
        seeds=8,
        steps=25,
        runs=25.0,
        region="face",
        nulls=("random-channel",),
        plot_images=plot_images,
        table=table,
    )
)
