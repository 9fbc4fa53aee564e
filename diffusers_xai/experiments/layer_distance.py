"""How much layers change from step to step (thesis fig. 5.7)."""

from collections.abc import Sequence

import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import short_name
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import band
from diffusers_xai.experiments.maps import max_channel_maps
from diffusers_xai.experiments.sampling import Sampling, of_first_seed
from diffusers_xai.explainers import Activations
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import curves_over_time
from diffusers_xai.plots.tiles import Tile, tile_grid


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    records: int = 50,
) -> xr.Dataset:
    """LayerDist of each layer between recorded steps, in units of the layer's mean distance.

    Source: thesis eq. 4.1.10, fig. 5.7.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`.
        records (`int`): How many steps are recorded, evenly spread.

    Returns:
        `xarray.Dataset`: `distance` (Frobenius norm) of dims (seed, layer, step). Of the first seed, the record
        before and the one after each layer's largest jump: `map` of the channel c* of that moment (layer, moment,
        height, width), resized to the samples' size, its `channel` and the `map_timestep` (layer, moment).
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(layers or list(denoiser.attention_outputs())))

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Activations(layers=paths, every=sampling.every(records))])
        maps = max_channel_maps(profile, [f"activations/{path}" for path in paths], pipe.sample_shape[-2:])
        curves = [profile.trajectory("distance", layer=path).rename(sample="seed") for path in paths]
        joined = xr.concat(curves, "layer").assign_coords(layer=[short_name(path, denoiser.aliases) for path in paths])
        distance = joined.transpose("seed", "layer", "step")
        jump = distance.argmax("step").variable  # from this record to the next
        moments = xr.Variable.concat([jump, jump + 1], "moment")
        around = maps.isel(step=moments)
        timesteps = xr.Variable("step", profile[f"activations/{paths[0]}"]["timestep"].values)
        return xr.Dataset(
            {
                "distance": distance,
                "map": around["map"],
                "channel": around["channel"],
                "map_timestep": timesteps.isel(step=moments),
            }
        ).assign_coords(moment=["before", "after"])

    # A seed's activations are kept until its distances are taken: few at a time.
    data = sampling.over_seeds(measure_batch, "distances of layers", seeds_at_once=max(1, sampling.batch_size // 8))
    return of_first_seed(data, "map", "channel", "map_timestep")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws a curve for each layer, each in units of its own mean."""
    distance = result.data["distance"]
    relative = distance / distance.mean(["seed", "step"])
    figure = curves_over_time(distance, "distance to the next record, in units of the layer's mean")
    for index, layer in enumerate(distance["layer"].values.tolist()):
        band(figure, distance["timestep"].values, relative.sel(layer=layer), layer, index)
    figure.update_layout(height=480, showlegend=True)
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


EXPERIMENT = register(
    Experiment(
        "layer-distance",
        "How much the layers change",
        "The distance of a layer's output to that at the next recorded step, each layer in units of its own mean, over"
        " the process. A peak is a moment at which the layer turns to something else. The maps are those of the most"
        " active channel c* of each layer, before and after its largest jump, of the first seed.",
        "thesis eq. 4.1.10, fig. 5.7",
        measure,
        plot,
        seeds=10,
        plot_images=plot_images,
    )
)
