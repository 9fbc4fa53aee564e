"""How the directions of a state and what pushes along them do are drawn."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from diffusers_xai.experiments.base import ExperimentResult
from diffusers_xai.experiments.direction_walks import INSIDE, WALKS
from diffusers_xai.experiments.figures import band, null_name
from diffusers_xai.experiments.jacobians import CLEAN, LAYER
from diffusers_xai.experiments.tables import excess_columns, in_table
from diffusers_xai.plots.style import LINE_COLORS, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


def plot(result: ExperimentResult) -> go.Figure:
    """Draws how the singular values fall, the local dimension, and what pushes change, each with its control."""
    data = result.data
    titles = ["singular values of ∂x̂<sub>0</sub>/∂x<sub>t</sub>", "local dimension", "change of the final image"]
    figure = make_subplots(rows=3, cols=1, vertical_spacing=0.13, subplot_titles=titles)
    control = null_name(result.settings)
    ranks, times = 1 + np.arange(data.sizes["rank"]), data["timestep"].values
    for index, time in enumerate(times):
        for name, dash in (("values", "solid"), ("null_values", "dot")):
            if name in data:
                mean = data[name].sel(object=CLEAN).isel(step=index).mean("seed")
                text = f"t = {time:.0f}" + ("" if name == "values" else f", {control}")
                figure.add_scatter(
                    x=ranks, y=mean.values, name=text, legend="legend", mode="lines+markers", row=1, col=1,
                    line={"color": LINE_COLORS[index % len(LINE_COLORS)], "dash": dash}, marker={"size": 4},
                )  # fmt: skip
    places: list[dict[str, Any]] = [{"row": row, "col": 1, "legend": f"legend{row}"} for row in (2, 3)]
    middle, last = places
    for index, (name, text) in enumerate(((CLEAN, "x̂<sub>0</sub>"), (LAYER, f"h: {result.settings['layer']}"))):
        if name in data["object"].values:
            band(figure, times, data["dimension"].sel(object=name), text, index, **middle)
    if "null_dimension" in data:
        dimension = data["null_dimension"].sel(object=CLEAN)
        band(figure, times, dimension, f"x̂<sub>0</sub>, {control}", muted=True, **middle)
    for index, walk in enumerate(data["walk"].values.tolist()):
        band(figure, times, data["change"].sel(walk=walk).mean("direction"), WALKS[walk], index, **last)
    figure.update_xaxes(title="number of the direction", dtick=1, row=1)
    for row in (2, 3):
        figure.update_xaxes(title="timestep t", autorange="reversed", row=row)
    ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    for row in (1, 2):
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], row=row)
    figure.update_yaxes(rangemode="tozero", row=3)
    place = {"x": 1.02, "xanchor": "left", "yanchor": "top", "orientation": "v", "font": {"size": 11}}
    legends = {f"legend{name}": {**place, "y": y} for name, y in (("", 1.0), (2, 0.63), (3, 0.25))}
    return figure.update_layout(template=TEMPLATE, height=960, margin={"r": 380}, showlegend=True, **legends)


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws, of the first seed, the directions in x_t and the images after pushes to either side."""
    data, last = result.data, result.data.sizes["step"] - 1
    walked = data["images"].sizes["direction"]
    rows: list[list[Tile | None]] = []
    names = []
    shown = [(CLEAN, moment) for moment in range(last + 1)]
    shown += [(walk, moment) for walk in ("random", "null", INSIDE) for moment in (0,) if walk in data["walk"].values]
    intact = to_rgb(data["intact"].values)
    for walk, moment in shown:
        row: list[Tile | None] = []
        part = data["images"].sel(walk=walk).isel(step=moment)
        for index in range(walked):
            right = data["right"].sel(object=CLEAN).isel(step=moment, direction=index).mean("rgb").values
            row.append(Tile(right, f"direction {index + 1}") if walk == CLEAN else None)
            row += [
                Tile(to_rgb(part.isel(direction=index, sign=k).values), f"push {text}") for k, text in enumerate("−+")
            ]
        rows.append([*row, Tile(intact, "not pushed")])
        title = {CLEAN: "x̂<sub>0</sub>", "random": "random", "null": "control", INSIDE: "in h"}[walk]
        names.append(f"{title},<br>t = {data['timestep'].values[moment]:.0f}")
    columns = [text for k in range(walked) for text in (f"direction {k + 1}", "−", "+")]
    return tile_grid(rows, [*columns, "not pushed"], names, scale="diverging", scale_title="weight of each pixel")


def table(result: ExperimentResult) -> pd.DataFrame:
    """Largest singular value and local dimension beside the control, the change beside that of random directions."""
    data = result.data
    rows: list[dict[str, Any]] = []
    for moment, time in enumerate(data["timestep"].values):
        part = data.isel(step=moment)
        first = part.sel(object=CLEAN).isel(rank=0)
        for name in ("values", "dimension"):
            text = {"values": "largest singular value of x̂_0", "dimension": "local dimension of x̂_0"}[name]
            rows.append({"t": f"{time:.0f}", "": text, **excess_columns(first, name)})
        change = part["change"].mean("direction")
        for walk, against in ((CLEAN, "random"), (CLEAN, "null"), (LAYER, "random"), (INSIDE, "random h")):
            if walk in data["walk"].values and against in data["walk"].values:
                pair = xr.Dataset(
                    {"change": change.sel(walk=walk, drop=True), "null_change": change.sel(walk=against, drop=True)}
                )
                text = f"change, {_plain(WALKS[walk])}; control: {_plain(WALKS[against])}"
                rows.append({"t": f"{time:.0f}", "": text, **excess_columns(pair, "change")})
        if "judged" in part:
            told = abs(part["judged"] - part["judged_intact"]).mean(["direction", "sign"])
            for attribute in told["attribute"].values.tolist():
                own, random = (told.sel(walk=walk, attribute=attribute, drop=True) for walk in (CLEAN, "random"))
                pair = xr.Dataset({"change": own, "null_change": random})
                text = f"change of {attribute}, along the directions of x̂_0; control: random"
                columns = excess_columns(pair, "change", verdicts=True)
                rows.append({"t": f"{time:.0f}", "": text, **columns})
    return in_table(rows)


def _plain(text: str) -> str:
    return text.replace("<sub>", "_").replace("</sub>", "")
