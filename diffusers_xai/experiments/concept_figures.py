"""Figures of concept units: where they agree with masks, and what the image loses without them."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from diffusers_xai.experiments.base import ExperimentResult
from diffusers_xai.experiments.concept_losses import draw_lost, losses_of
from diffusers_xai.experiments.figures import dots
from diffusers_xai.plots.style import COLOR_SCALE, LINE_COLORS, MUTED_COLOR, TEMPLATE
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile.pictures import to_rgb


_MARGINS = 160  # pixels above and below the panels


def plot(result: ExperimentResult) -> go.Figure:
    """Draws the best IoU of each concept by layer and by time; below, the change without the best and random units.

    With a judge, last in how many seeds an attribute that was there is lost without them.
    """
    data = result.data
    concepts = data["concept"].values.tolist()
    iou = data["iou"]
    by_layer = iou.max("time").groupby("layer").max()
    by_layer = by_layer.sel(layer=pd.unique(data["layer"].values))
    panels = [(by_layer.values, by_layer["layer"].values.tolist(), "layer")]
    panels.append((iou.max("unit").values, [f"t = {t}" for t in data["timestep"].values], "time"))
    if "null_iou" in data:
        panels.append((data["null_iou"].max(["unit", "time"]).values[:, None], ["control"], "control"))
    wide, rows = len(panels), 3 if "judged" in data else 2
    losses = [{}, {"colspan": wide - 1}, *[None] * (wide - 2)]
    figure = make_subplots(
        rows=rows,
        cols=wide,
        specs=[[{}] * wide, [{"colspan": wide}, *[None] * (wide - 1)], losses][:rows],
        column_widths=[0.72, 0.22, 0.06][:wide] if rows == 2 else [0.5, 0.37, 0.13][:wide],
        horizontal_spacing=0.015,
        vertical_spacing=(0.4 if rows == 2 else 0.5) / rows,
    )
    for column, (best, names, what) in enumerate(panels, 1):
        figure.add_heatmap(
            z=best,
            x=names,
            y=concepts,
            zmin=0,
            zmax=float(iou.max()),
            colorscale=COLOR_SCALE,
            showscale=column == 1,
            colorbar={"title": {"text": "best IoU"}, "y": 1, "yanchor": "top", "len": 1 / rows},
            hovertemplate=f"%{{y}}, {what} %{{x}}: %{{z:.2f}}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_yaxes(autorange="reversed", showticklabels=column == 1, automargin=True, row=1, col=column)
    groups = [("without its best units, in its place", data["inside"], LINE_COLORS[1], "diamond", -0.2)]
    groups.append(("without its best units, elsewhere", data["outside"], LINE_COLORS[0], "diamond-open", 0.0))
    if "null_inside" in data:
        random = data["null_inside"].mean("draw")
        groups.append(("control: without random units, in its place", random, MUTED_COLOR, "circle-open", 0.2))
    dots(figure, groups, row=2, col=1)
    figure.update_xaxes(
        title="mean |change| of the image, which reaches from -1 to 1",
        rangemode="tozero",
        autorangeoptions={"clipmin": 0},
        row=2,
        col=1,
    )
    ticks = {"tickvals": list(range(len(concepts))), "ticktext": concepts}
    figure.update_yaxes(**ticks, autorange="reversed", automargin=True, row=2, col=1)
    figure.update_layout(template=TEMPLATE, height=260 + 50 * len(concepts), legend={"y": -0.14, "yanchor": "top"})
    if rows == 3:
        draw_lost(figure, losses_of(data), concepts)
        height = 330 + 80 * len(concepts)
        bottom = figure.layout[f"yaxis{wide + 1}"].domain[0]  # of the dots, which the legend tells
        figure.update_layout(height=height, margin={"b": 100}, legend={"y": bottom - 65 / (height - _MARGINS)})
    return figure


def plot_images(result: ExperimentResult) -> go.Figure:
    """Draws each concept's best unit on pictures, masks outlined, and an image without the best ones."""
    data = result.data
    layers, channels = data["layer"].values, data["channel"].values
    rows: list[list[Tile | None]] = []
    names = []
    for index, concept in enumerate(data["concept"].values.tolist()):
        part = data.isel(concept=index)
        unit = int(part["ablated"][0])
        names.append(f"{concept}<br>{layers[unit]}:{channels[unit]}")
        row: list[Tile | None] = []
        for picture, mask, values in zip(
            data["pictures"].values, part["mask"].values, part["map"].values, strict=True
        ):
            outline = mask if mask.any() else None
            row += [Tile(to_rgb(picture), concept, outline=outline), Tile(values, concept, outline=outline)]
        rows.append(
            [*row, Tile(to_rgb(data["intact"].values), "intact"), Tile(to_rgb(part["without"].values), "ablated")]
        )
    columns = ["picture", "best unit"] * data.sizes["shown"] + ["intact", "without"]
    return tile_grid(rows, columns, names, scale_title="each map in its own range")
