"""How much layers change from step to step (thesis fig. 5.7)."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band, null_name
from diffusers_xai.experiments.maps import max_channel_maps
from diffusers_xai.experiments.nulls import Null, null_pipeline, on_states_of
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import curves_over_time
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    records: int = 50,
    null: Null = "random-weights",
) -> xr.Dataset:
    """LayerDist of each layer between recorded steps, in units of the layer's mean distance.

    Source: thesis eq. 4.1.10, fig. 5.7.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`.
        records (`int`): How many steps are recorded, evenly spread.
        null (`str` or [`XAIPipeline`]): `"random-weights"`, which sees the same states, a pipeline with the same
            layers, or `"none"`.

    Returns:
        `xarray.Dataset`: `distance` and `null_distance` (Frobenius norm) of dims (seed, layer, step). Of the first
        seed, the record before and the one after each layer's largest jump: `map` of the channel c* of that moment
        (layer, moment, height, width), resized to the samples' size, its `channel` and the `map_timestep` (layer,
        moment).
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(layers or telling_layers(denoiser)))

    other = null_pipeline(null, pipe, sampling)
    what = [Activations(layers=paths, every=sampling.every(records))]
    names = [denoiser.short_name(path) for path in paths]

    def distances(profile: DiffusionProfile) -> xr.DataArray:
        curves = [profile.trajectory("distance", layer=path).rename(sample="seed") for path in paths]
        return xr.concat(curves, "layer").assign_coords(layer=names).transpose("seed", "layer", "step")

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(), *what])
        maps = max_channel_maps(profile, [f"activations/{path}" for path in paths], pipe.sample_shape[-2:])
        distance = distances(profile)
        jump = distance.argmax("step").variable  # from this record to the next
        moments = xr.Variable.concat([jump, jump + 1], "moment")
        around = maps.isel(step=moments)
        timesteps = xr.Variable("step", profile[f"activations/{paths[0]}"]["timestep"].values)
        data = xr.Dataset(
            {
                "distance": distance,
                "map": around["map"],
                "channel": around["channel"],
                "map_timestep": timesteps.isel(step=moments),
            }
        ).assign_coords(moment=["before", "after"])
        if other is not None:
            data["null_distance"] = distances(on_states_of(profile, other, sampling, part, what))
        return data

    # A seed's activations are kept until its distances are taken: few at a time.
    at_once, pictures = max(1, sampling.batch_size // 8), ["map", "channel", "map_timestep"]
    return sampling.over_seeds(measure_batch, "distances of layers", seeds_at_once=at_once, of_first=pictures)


def _relative(distance: xr.DataArray) -> xr.DataArray:
    """Distances in units of each layer's mean."""
    return distance / distance.mean(["seed", "step"])


def plot(result: ExperimentResult) -> go.Figure:
    """Draws a curve for each layer, each in units of its own mean."""
    distance = result.data["distance"]
    relative = _relative(distance)
    figure = curves_over_time(distance, "distance to the next record,<br>in units of the layer's mean")
    for index, layer in enumerate(distance["layer"].values.tolist()):
        band(figure, distance["timestep"].values, relative.sel(layer=layer), layer, index)
    if "null_distance" in result.data:
        null = _relative(result.data["null_distance"]).mean("layer")
        band(figure, distance["timestep"].values, null, f"{null_name(result.settings)}, all layers", muted=True)
    figure.update_layout(height=480, showlegend=True, margin={"l": 88})
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws the maps of c* before and after each layer's largest jump of the first seed, a column for each layer."""
    data = result.data
    layers = data["layer"].values.tolist()
    moments = data["moment"].values.tolist()
    part = data.transpose("moment", "layer", ...)
    rows = [
        [
            Tile(
                part["map"].values[i, j],
                f"{layer}, channel {int(part['channel'][i, j])}",
                caption=f"t = {float(part['map_timestep'][i, j]):.0f}, c*={int(part['channel'][i, j])}",
            )
            for j, layer in enumerate(layers)
        ]
        for i in range(len(moments))
    ]
    return tile_grid(rows, layers, moments, scale_title="activation, in each map")


def table(result: ExperimentResult) -> pd.DataFrame:
    """The largest jump of each layer, in units of its mean distance: of the model, of the control, and the excess."""
    data = result.data
    names = [name for name in ("distance", "null_distance") if name in data]
    jumps = xr.Dataset({name: _relative(data[name]).max("step") for name in names})
    return in_table(
        [
            {"largest jump of": layer, **excess_columns(jumps.sel(layer=layer), "distance")}
            for layer in data["layer"].values.tolist()
        ]
    )


register(
    Experiment(
        "layer-distance",
        "How much the layers change",
        "The distance of a layer's output to that at the next recorded step, each layer in units of its own mean,"
        " over the process. A peak is a moment at which the layer turns to something else. Grey: the same network"
        " with random weights, shown the same states, whose peaks are those of the states. The maps are those of the"
        " most active channel c* of each layer, before and after its largest jump, of the first seed.",
        "thesis eq. 4.1.10, fig. 5.7",
        measure,
        plot,
        nulls=("random-weights",),
        seeds=10,
        steps=250,
        runs=2.3,
        plot_images=plot_images,
        table=table,
    )
)
