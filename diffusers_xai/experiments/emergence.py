"""When the final image's structure shows in the layers, and when in the state itself (thesis chapter 5)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.analysis.structure import edge_strength, foreground, map_correlation
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.denoisers.blocks import short_name
from diffusers_xai.experiments.base import Experiment, ExperimentResult, register
from diffusers_xai.experiments.maps import max_channel_maps, resized
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.explainers import Activations, Samples
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import MUTED_COLOR, TEMPLATE, line_style
from diffusers_xai.profile.selection import pick_branch


STATE = "x_t"
EXCEEDS = {"exceeds": "correlation", "chance_exceeds": "chance"}
THRESHOLD = 0.3
MAP_NAMES = {"sum": "sum over the channels (part of A<sub>t</sub>)", "c*": "most active channel c*"}


def measure(
    pipe: XAIPipeline,
    sampling: Sampling,
    *,
    layers: Sequence[str] | None = None,
    records: int = 25,
) -> xr.Dataset:
    """Correlation of each layer's map, and of the state x_t, with the edges and the foreground of the final image.

    A layer has two maps, both up-sampled bilinearly: its output summed over the channels (its part of A_t), and that
    of its most active channel c* at the step. Chance is what the same maps show of the image of another seed.

    Source: METHOD: thesis chapter 5's claim that structure shows in `mid_attn.fn` before it shows in x_t, as a number.

    Args:
        pipe ([`XAIPipeline`]): The model.
        sampling ([`Sampling`]): What is sampled.
        layers (`Sequence[str]`, *optional*): Globs of layers; all attention layers if `None`.
        records (`int`): How many steps are looked at, evenly spread.

    Returns:
        `xarray.Dataset`: `correlation` and `chance` (absolute Pearson correlations) of dims (seed, target, map,
        layer, step), the first layer being x_t itself and the maps `sum` and `c*`. Of dims (seed, target, map, layer),
        in parts of the process: `lead`, by how much earlier than that of x_t a layer's correlation exceeds 0.3, at two
        records in turn; negative if later, NaN if never; `exceeds`, when it first exceeds both 0.3 and that of x_t, at
        two records in turn, NaN if never; and `chance_exceeds`, the same of `chance`.
    """
    if min(len(sampling.seeds), sampling.batch_size) < 2:
        got = f"{len(sampling.seeds)} seeds and batch_size {sampling.batch_size}"
        raise ValueError(f"expected at least two seeds at a time, got {got}")
    denoiser = get_denoiser(pipe)
    paths = list(denoiser.resolve_layers(layers or list(denoiser.attention_outputs())))
    every = sampling.every(records)

    def measure_batch(part: list[int]) -> xr.Dataset:
        profile = sampling.profile(
            pipe,
            part,
            [Samples(every=every), Activations(layers=paths, every=every)],
        )
        samples, final = profile["samples"], profile["final_sample"].values
        size = samples.shape[-2:]
        names = [f"activations/{path}" for path in paths]
        state = samples.values.mean(2)
        maps = {
            "sum": [state, *(_sum_map(profile[name], size) for name in names)],
            "c*": [state, *max_channel_maps(profile, names, size, mode="bilinear")["map"].values],
        }
        # x_t is compared by its own edges too: whichever shows more of the image is taken.
        edges = edge_strength(samples.values)
        targets = {"edges": edge_strength(final), "foreground": foreground(final)}
        correlation, chance = (
            np.array([[_correlations(kind, edges, wanted) for kind in maps.values()] for wanted in wanted_images])
            for wanted_images in (targets.values(), [np.roll(target, 1, axis=0) for target in targets.values()])
        )
        dims = ("target", "map", "layer", "step", "seed")
        return xr.Dataset(
            {"correlation": (dims, correlation), "chance": (dims, chance)},
            {
                "target": list(targets),
                "map": list(maps),
                "layer": [STATE, *[short_name(path, denoiser.aliases) for path in paths]],
                "step": samples["step"].values,
                "timestep": ("step", samples["timestep"].values),
            },
        ).transpose("seed", "target", "map", "layer", "step")

    at_once = max(2, sampling.batch_size // 2)
    data = sampling.over_seeds(measure_batch, "structure in the layers", seeds_at_once=at_once)
    correlation = data["correlation"]
    shown = _first(correlation > THRESHOLD, sampling.steps)
    state = shown.sel(layer=STATE, drop=True).fillna(1.0)
    bar = np.maximum(correlation.sel(layer=STATE, drop=True), THRESHOLD)
    exceeds = {name: _first(data[array] > bar, sampling.steps) for name, array in EXCEEDS.items()}
    return data.assign({"lead": state - shown, **exceeds}).assign_attrs(threshold=THRESHOLD)


def _correlations(maps: list[np.ndarray], edges: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Correlations of dims (layer, step, seed); x_t stands first, and its edges count if they show more than it."""
    values = np.stack([map_correlation(m, wanted) for m in maps])
    values[0] = np.maximum(values[0], map_correlation(edges, wanted))
    return values


def _sum_map(activations: xr.DataArray, size: tuple[int, ...]) -> np.ndarray:
    """Output summed over channels, at the sample's size: (step, sample, height, width)."""
    return resized(pick_branch(activations, "cond").values.astype(np.float32).sum(2), size, "bilinear")


def _first(shown: xr.DataArray, steps: int) -> xr.DataArray:
    """The part of the process done at the first record from which on it is shown twice in turn; NaN if never."""
    twice = shown & shown.shift(step=-1, fill_value=True)  # a single record may be chance
    first = xr.where(twice, shown["step"], np.inf).min("step") / steps
    return first.where(np.isfinite(first)).transpose("seed", "target", "map", "layer")


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the correlations over the process, x_t first, with chance dotted; a column for each kind of map."""
    data = result.data
    timesteps = data["timestep"].values
    targets, kinds = (data[name].values.tolist() for name in ("target", "map"))
    figure = make_subplots(
        rows=len(targets), cols=len(kinds), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.06,
        horizontal_spacing=0.03, column_titles=[MAP_NAMES[kind] for kind in kinds],
    )  # fmt: skip
    for row, target in enumerate(targets, start=1):
        for column, kind in enumerate(kinds, start=1):
            part = data.sel(target=target, map=kind)
            curves = part["correlation"].mean("seed")
            lines = [
                ("x<sub>t</sub> itself" if layer == STATE else layer, curves.sel(layer=layer), line_style(index))
                for index, layer in enumerate(part["layer"].values.tolist())
            ]
            lines[0][2]["width"] = 4
            chance = part["chance"].mean(["seed", "layer"])
            lines.append(("chance", chance, {"color": MUTED_COLOR, "dash": "dot", "width": 1.5}))
            for name, curve, line in lines:
                figure.add_scatter(
                    x=timesteps, y=curve.values, name=name, legendgroup=name, showlegend=row == column == 1,
                    mode="lines", line=line, row=row, col=column,
                )  # fmt: skip
            figure.add_hline(THRESHOLD, line={"color": MUTED_COLOR, "width": 1}, row=row, col=column)
        figure.update_yaxes(title=f"correlation with the {target}", row=row, col=1)
    figure.update_xaxes(range=[timesteps.max(), 0])
    figure.update_yaxes(range=[0, 1])
    figure.update_xaxes(title="timestep t", row=len(targets))
    return figure.update_layout(template=TEMPLATE, height=720, legend={"y": 1.06}, margin={"t": 96})


def table(result: ExperimentResult) -> pd.DataFrame:
    """How often, and from when on, a layer's map shows more of the image than x_t does.

    For each layer and target: the share of the seeds in which the correlation exceeds both 0.3 and that of x_t at some
    time, the same for the image of another seed (chance), the part of the process done by then (median of those
    seeds), and the mean lead of the crossing of 0.3.
    """
    data = result.data
    rows = []
    for layer in data["layer"].values.tolist()[1:]:
        for kind in data["map"].values.tolist():
            row: dict[str, Any] = {"layer": layer, "map": kind}
            for target in data["target"].values.tolist():
                part = data.sel(layer=layer, map=kind, target=target)
                exceeds, lead = part["exceeds"].dropna("seed"), part["lead"].dropna("seed")
                often, by_chance = (100 * float(np.isfinite(part[name]).mean()) for name in EXCEEDS)
                row[f"{target}: exceeds x_t in"] = f"{often:.0f} % of seeds (chance: {by_chance:.0f} %)"
                row[f"{target}: from"] = f"{100 * float(exceeds.median()):.0f} % done" if exceeds.size else "never"
                row[f"{target}: lead"] = f"{100 * float(lead.mean()):+.1f} %" if lead.size else "never"
            rows.append(row)
    return pd.DataFrame(rows)


EXPERIMENT = register(
    Experiment(
        "emergence",
        "When structure shows",
        "How well each layer's maps (its part of A_t, and its most active channel c*) and the state x_t correlate with"
        " the edges, and with the foreground, of the final image over the process, means over the seeds. The dotted"
        " line is what they show of the image of another seed: chance. A layer that rises before x_t does shows"
        " structure that is not to be seen yet. The table tells in how many seeds a layer shows more than x_t, from"
        " when on, and by how much of the process its correlation passes 0.3 before that of x_t does (lead).",
        "thesis chapter 5, as a number",
        measure,
        plot,
        steps=100,
        table=table,
    )
)
