"""When the final image's structure shows in the layers, and when in the state itself (thesis chapter 5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis.structure import edge_strength, foreground
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import telling_layers
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.figures import null_name
from diffusers_xai.experiments.maps import max_channel_maps, pooled, standardised
from diffusers_xai.experiments.nulls import Null, null_pipeline, on_states_of
from diffusers_xai.experiments.sampling import Sampling, batches
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE, line_style
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.profile.selection import pick_branch


LEVEL = 0.95  # of the correlations with the images of other seeds: what lies above is shown
KINDS = {"sum": "sum over the channels (part of A<sub>t</sub>)", "c*": "most active channel c*"}
TARGETS = ("edges", "foreground")


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    records: int = 25,
    null: Null = "random-weights",
) -> xr.Dataset:
    """Correlation of each layer's map with the edges and the foreground of the final image, beside that of x_t.

    A layer has two maps: its output summed over the channels (its part of A_t), and that of its most active channel c*
    at the step. Everything is compared at the map's own size: the image's edges and foreground, and x_t, are averaged
    to it. (A map of 4×4 pixels that is enlarged to 32 correlates with edges at most 0.39, on average over images.) A
    map shows the image from when on it correlates more with it, at two records in turn, than with 95 % of the images
    of other seeds.

    The control is the same network with random weights, which is shown the same states: convolutions keep what they
    see, trained or not.

    Source: thesis chapter 5's claim that structure shows in `mid_attn.fn` before it shows in x_t, as a number.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled; at least three seeds.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`.
        records (`int`): How many steps are looked at, evenly spread.
        null (`str` or [`XAIPipeline`]): `"random-weights"`, a pipeline with the same layers, or `"none"`.

    Returns:
        `xarray.Dataset`: Absolute Pearson correlations of dims (seed, target, map, layer, step): `correlation`, and
        `chance`, the mean of those with the images of the other seeds of its batch; `state` and `state_chance`, of x_t
        at the layer's size, without the dim map. Of dims (seed, target, map, layer), in parts of the process: `lead`,
        by how much earlier than x_t a layer shows the image (negative if later; what is never shown counts as shown at
        the end).
        `null_correlation`, `null_chance` and `null_lead` are the control's.
    """
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(layers or telling_layers(denoiser)))
    every = sampling.every(records)
    other = null_pipeline(null, pipe, sampling)
    what = [Activations(layers=paths, every=every)]

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(pipe, part, [Samples(), *what])
        samples = profile["samples"]
        states, final = samples.isel(step=slice(None, None, every)).values, profile["final_sample"].values
        image = ("seed", "height", "width")
        data = xr.Dataset(
            {
                "grey": (("step", *image), states.mean(2)),
                "state_edges": (("step", *image), edge_strength(states)),
                "edges": (image, edge_strength(final)),
                "foreground": (image, foreground(final)),
                **_maps(profile, paths, "maps"),
            },
            {"timestep": ("step", samples["timestep"].values[::every]), "step": samples["step"].values[::every]},
        )
        if other is not None:
            data = data.assign(_maps(on_states_of(profile, other, sampling, part, what), paths, "null_maps"))
        return data.transpose("seed", ...)

    def compared_batch(part: list[int]) -> xr.Dataset:
        # All channels of a seed's layers are kept until their maps are taken: half as many seeds at a time.
        halves = [measure_batch(half) for half in batches(part, max(1, sampling.batch_size // 2))]
        seen = xr.concat(halves, "seed", data_vars="minimal")
        return xr.concat([_compared(seen, index) for index in range(len(paths))], "layer").assign_coords(
            timestep=seen["timestep"], step=seen["step"]
        )

    # The seeds of a batch are each other's chance.
    data = sampling.over_seeds(compared_batch, "structure in the layers", at_least=3)
    data = data.transpose("seed", "target", "map", "layer", "step")
    firsts = {name: _first(data[f"{name}shown"]) for name in ("", "state_", "null_") if f"{name}shown" in data}
    data = data.drop_vars([name for name in data if str(name).endswith("shown")])
    data["lead"] = firsts["state_"] - firsts[""]
    if "null_" in firsts:
        data["null_lead"] = firsts["state_"] - firsts["null_"]
    names = [denoiser.short_name(path) for path in paths]
    return data.assign_coords(target=list(TARGETS), map=list(KINDS), layer=names).assign_attrs(level=LEVEL)


def _maps(profile: DiffusionProfile, paths: Sequence[str], name: str) -> dict[str, Any]:
    """Both maps of each layer at its own size, of dims (step, seed, map, height, width); a name for each layer."""
    found = {}
    for index, path in enumerate(paths):
        array = pick_branch(profile[f"activations/{path}"], "cond")
        best = max_channel_maps(profile, [f"activations/{path}"], array.shape[-2:])["map"].values[0]
        values = np.stack([array.values.astype(np.float32).sum(2), best], axis=2)
        found[f"{name}{index}"] = (("step", "seed", "map", f"h{index}", f"w{index}"), values)
    return found


def _compared(seen: xr.Dataset, index: int) -> xr.Dataset:
    """The correlations of one layer, the targets and x_t averaged to its size."""
    height, width = seen[f"maps{index}"].shape[-2:]
    size = (height, width)
    targets = np.stack([pooled(seen[name].values, size) for name in TARGETS])
    found: dict[str, Any] = {}
    for prefix in ("", "null_"):
        if f"{prefix}maps{index}" in seen:
            maps = seen[f"{prefix}maps{index}"].transpose("map", "step", "seed", ...).values
            found |= _against(targets, [maps], prefix, ("target", "map", "step", "seed"))
    # x_t is compared by its own edges too: whichever shows more of the image is taken.
    views = [pooled(seen[name].transpose("step", "seed", ...).values, size) for name in ("grey", "state_edges")]
    return xr.Dataset(found | _against(targets, views, "state_", ("target", "step", "seed")))


def _against(targets: np.ndarray, views: Sequence[np.ndarray], prefix: str, dims: tuple[str, ...]) -> dict[str, Any]:
    """Correlation of maps (…, seed, h, w) with the targets (target, seed, h, w) of the same seed and of all others."""
    aimed = standardised(targets)
    pairs = np.max([np.abs(np.einsum("...ip,tjp->t...ij", standardised(view), aimed)) for view in views], axis=0)
    count = pairs.shape[-1]
    own = np.diagonal(pairs, axis1=-2, axis2=-1)
    others = pairs[..., ~np.eye(count, dtype=bool)].reshape(*pairs.shape[:-1], count - 1)
    bar = np.quantile(others, LEVEL, axis=(-2, -1), keepdims=True)[..., 0]
    name = "state" if prefix == "state_" else f"{prefix}correlation"
    return {
        name: (dims, own),
        f"{prefix}chance": (dims, others.mean(-1)),
        f"{prefix}shown": (dims, own > bar),
    }


def _first(shown: xr.DataArray) -> xr.DataArray:
    """The part of the process done at the first of two records in turn that show it; 1 if there are none."""
    steps = shown["step"].values
    done = xr.DataArray(steps / (steps[-1] + (steps[1] - steps[0] if len(steps) > 1 else 1)), dims="step")
    twice = shown & shown.shift(step=-1, fill_value=True)  # a single record may be chance
    return xr.where(twice, done, 1.0).min("step")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws what the maps show of the image beyond chance; a column for each kind of map, x_t first."""
    data = result.data
    timesteps = data["timestep"].values
    figure = make_subplots(
        rows=len(TARGETS), cols=len(KINDS), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
        horizontal_spacing=0.03, column_titles=list(KINDS.values()),
    )  # fmt: skip
    beyond = (data["correlation"] - data["chance"]).mean("seed")
    state = (data["state"] - data["state_chance"]).mean("seed").isel(layer=0)
    for row, target in enumerate(TARGETS, start=1):
        for column, kind in enumerate(KINDS, start=1):
            lines = [("x<sub>t</sub> itself", state.sel(target=target), {"color": "#000000", "width": 4})]
            for index, layer in enumerate(data["layer"].values.tolist()):
                lines.append((layer, beyond.sel(target=target, map=kind, layer=layer), line_style(index)))
            if "null_correlation" in data:
                null = (data["null_correlation"] - data["null_chance"]).mean(["seed", "layer"])
                style = {"color": MUTED_COLOR, "dash": "dot", "width": 2.5}
                lines.append((f"{null_name(result.settings)}, all layers", null.sel(target=target, map=kind), style))
            for name, curve, line in lines:
                figure.add_scatter(
                    x=timesteps, y=curve.values, name=name, legendgroup=name, showlegend=row == column == 1,
                    mode="lines", line=line, row=row, col=column,
                )  # fmt: skip
        figure.update_yaxes(title=f"correlation with the {target},<br>less chance", row=row, col=1)
    lowest = min(float(beyond.min()), float(state.min()), -0.1)
    highest = max(float(beyond.max()), float(state.max()))
    figure.update_yaxes(range=[lowest - 0.05, highest + 0.05])
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_xaxes(title="timestep t", row=len(TARGETS))
    return figure.update_layout(template=TEMPLATE, height=720, legend={"y": 1.06}, margin={"t": 120, "l": 104})


def table(result: ExperimentResult) -> pd.DataFrame:
    """By how much of the process each map shows the image before x_t, averaged to the same size, does."""
    data = result.data
    rows: list[dict[str, Any]] = []
    for target in TARGETS:
        for layer in data["layer"].values.tolist():
            for kind in KINDS:
                part = data.sel(layer=layer, map=kind, target=target)
                rows.append({"shows": target, "layer": layer, "map": kind, **excess_columns(part, "lead")})
    return in_table(rows)


register(
    Experiment(
        "emergence",
        "When structure shows",
        "How well each layer's maps (its part of A_t, and its most active channel c*) and the state x_t correlate"
        " with the edges, and with the foreground, of the final image over the process, less what they show of the"
        " images of other seeds (chance); means over the seeds. All is compared at the map's own size; the thick line"
        " is x_t at full size. Grey: the same network with random weights, shown the same states. The table tells by"
        " which share of the process a map shows the image earlier than x_t, averaged to the map's size, does.",
        "thesis chapter 5, as a number",
        measure,
        plot,
        nulls=("random-weights",),
        steps=100,
        min_seeds=3,  # whose images are each other's chance
        runs=2.0,
        table=table,
    )
)
