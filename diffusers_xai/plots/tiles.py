"""Rows and columns of small pixelated images in one figure."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.style import COLOR_SCALE, DIVERGING_COLOR_SCALE, TEMPLATE, color_bar
from diffusers_xai.profile.pictures import png_data_uri, thumbnail


_GAP = 0.06
# In CSS pixels; the height of a figure is right at this width, and a wider or narrower one keeps the tiles' shape.
_WIDTH = 1080
_CAPTION_HEIGHT, _CHARACTER_WIDTH = 18, 7
_MAX_TILE = 200
_LEAST_FONT = 8
_PICTURE_SIZE = 256  # pixels of a picture's longer side: more than a tile has
_OVERLAY_OPACITY = 0.65
_MARGIN, _TOP, _COLOR_BAR = 12, 32, 56


@dataclass(frozen=True)
class Tile:
    """One image of a grid.

    Args:
        values (`np.ndarray`): `(H, W, 3)` uint8 colours, or an `(H, W)` float map that is drawn by a colour scale.
        name (`str`): What the pointer shows.
        caption (`str`): Text under the image.
        outline (`np.ndarray`, *optional*): `(H, W)` boolean mask whose border is drawn over the image, of the image's
            size or coarser.
        backdrop (`np.ndarray`, *optional*): `(H, W, 3)` uint8 picture under a map, which lets it shine through.
    """

    values: np.ndarray
    name: str
    caption: str = ""
    outline: np.ndarray | None = None
    backdrop: np.ndarray | None = None


def tile_grid(
    tiles: Sequence[Sequence[Tile | None]],
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    *,
    shared_scale: bool = False,
    scale: str = "linear",
    scale_title: str = "",
) -> go.Figure:
    """Draws `tiles[row][column]` on one pair of axes; every tile is one unit high, whatever its resolution.

    Args:
        tiles (`Sequence[Sequence[Tile | None]]`): Rows of tiles; `None` leaves a place empty.
        column_labels (`Sequence[str]`): Texts above the columns.
        row_labels (`Sequence[str]`): Texts left of the rows.
        shared_scale (`bool`): One colour range for all maps instead of one for each.
        scale (`str`): How values become colours: `"linear"` from the least to the greatest, `"log"` so by their
            logarithm (of positive values), `"diverging"` with white at zero.
        scale_title (`str`): Title of the colour bar, drawn where there are maps.
    """
    cells = [(i, j, tile) for i, row in enumerate(tiles) for j, tile in enumerate(row) if tile is not None]
    rows, columns = len(row_labels), len(column_labels)
    aspect = max(tile.values.shape[1] / tile.values.shape[0] for _, _, tile in cells)
    lines = [html.unescape(re.sub("<.*?>", "", line)) for label in row_labels for line in label.split("<br>")]
    left = _MARGIN + _CHARACTER_WIDTH * max(4, *map(len, lines))
    pitch_x = aspect + _GAP
    span = max(columns * pitch_x - _GAP, (_WIDTH - left - _MARGIN) / _MAX_TILE)
    unit = (_WIDTH - left - _MARGIN) / span
    pitch_y = 1 + _GAP + (_CAPTION_HEIGHT / unit if any(tile.caption for _, _, tile in cells) else 0)
    maps = [_scaled(tile.values, scale) for _, _, tile in cells if tile.values.ndim == 2]
    common = _color_range(np.concatenate([m.ravel() for m in maps]), scale) if shared_scale and maps else None

    figure = go.Figure()
    bar_drawn = False
    for i, j, tile in cells:
        left_edge, top_edge = j * pitch_x, i * pitch_y
        picture = tile.values if tile.values.ndim == 3 else tile.backdrop
        if picture is not None:
            picture = thumbnail(picture, _PICTURE_SIZE)
            figure.add_trace(
                go.Image(
                    source=png_data_uri(picture),
                    hovertemplate=f"{tile.name}<extra></extra>" if tile.values.ndim == 3 else None,
                    hoverinfo=None if tile.values.ndim == 3 else "skip",
                    **_place(picture, left_edge, top_edge, aspect),
                )
            )
        if tile.values.ndim == 2:
            shown = _scaled(tile.values, scale)
            value = "customdata" if scale == "log" else "z"
            low, high = common or _color_range(shown, scale)
            figure.add_trace(
                go.Heatmap(
                    z=shown,
                    zmin=low,
                    zmax=high,
                    colorscale=DIVERGING_COLOR_SCALE if scale == "diverging" else COLOR_SCALE,
                    customdata=tile.values if scale == "log" else None,
                    hovertemplate=f"{tile.name}<br>value %{{{value}:.4g}}<extra></extra>",
                    showscale=not bar_drawn,
                    colorbar=_color_bar(low, high, shared_scale, scale, scale_title),
                    opacity=1 if tile.backdrop is None else _OVERLAY_OPACITY,
                    zsmooth=False if tile.backdrop is None else "best",
                    **_place(tile.values, left_edge, top_edge, aspect),
                )
            )
            bar_drawn = True
        if tile.outline is not None:
            xs, ys = _border(tile.outline)
            rows_of_mask, columns_of_mask = tile.outline.shape
            for color, line_width in (("black", 3), ("white", 1.5)):  # one of them shows on any background
                figure.add_scatter(
                    x=[None if x is None else left_edge + x * aspect / columns_of_mask for x in xs],
                    y=[None if y is None else top_edge + y / rows_of_mask for y in ys],
                    mode="lines",
                    line={"color": color, "width": line_width},
                    hoverinfo="skip",
                    showlegend=False,
                )
        if tile.caption:
            figure.add_annotation(
                x=j * pitch_x + aspect / 2, y=i * pitch_y + 1, text=tile.caption, showarrow=False, yanchor="top"
            )

    bottom = _COLOR_BAR if maps else _MARGIN
    bare = {
        "ticklabelstandoff": 4,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "showline": False,
        "fixedrange": True,
    }
    figure.update_layout(
        template=TEMPLATE,
        height=round(unit * (rows * pitch_y - _GAP)) + _TOP + bottom,
        margin={"l": left, "r": _MARGIN, "t": _TOP, "b": bottom},
        xaxis={
            **bare,
            "side": "top",
            "range": [0, span],
            "tickvals": [j * pitch_x + aspect / 2 for j in range(columns)],
            "ticktext": list(column_labels),
            "tickangle": 0,
            "constrain": "domain",
        },
        yaxis={
            **bare,
            "range": [rows * pitch_y - _GAP, 0],
            "tickvals": [i * pitch_y + 0.5 for i in range(rows)],
            "ticktext": list(row_labels),
            "scaleanchor": "x",
            "constrain": "domain",
            "constraintoward": "top",
        },
        dragmode=False,
    )
    return figure


def fit_width(figure: go.Figure, width: int) -> go.Figure:
    """The figure with the height that leaves no gap at another width, and captions that do not touch there.

    Figures without tiles stay as they are.
    """
    if figure.layout.yaxis.scaleanchor is not None:
        margin = figure.layout.margin
        above, beside = margin.t + margin.b, margin.l + margin.r
        tiles = (figure.layout.height - above) * (width - beside) / (_WIDTH - beside)
        figure.update_layout(height=round(tiles) + above)
        centres = figure.layout.xaxis.tickvals
        longest = max((len(caption.text) for caption in figure.layout.annotations), default=0)
        if longest and centres is not None and len(centres) > 1:
            pitch = (centres[1] - centres[0]) * (width - beside) / figure.layout.xaxis.range[1]
            size = figure.layout.template.layout.font.size or 12  # Plotly's own
            fitting = size * pitch / (_CHARACTER_WIDTH * (longest + 1))
            figure.update_annotations(font_size=max(_LEAST_FONT, min(size, fitting)))
    return figure


def tile_rows(tiles: Sequence[Tile], columns: int) -> go.Figure:
    """Draws `tiles` from left to right and from top to bottom, `columns` in a row; captions tell them apart."""
    rows = [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return tile_grid(rows, [""] * columns, [""] * len(rows))


def _place(values: np.ndarray, x: float, y: float, aspect: float) -> dict[str, float]:
    """Where the pixels of a tile lie whose corner is at `x` and `y`."""
    dx, dy = aspect / values.shape[1], 1 / values.shape[0]
    return {"x0": x + dx / 2, "dx": dx, "y0": y + dy / 2, "dy": dy}


def _scaled(values: np.ndarray, scale: str) -> np.ndarray:
    if scale != "log":
        return values
    positive = values[values > 0]
    return np.log10(np.maximum(values, positive.min() if positive.size else 1.0))


def _color_range(values: np.ndarray, scale: str) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if scale == "diverging":
        high = max(-low, high)
        low = -high
    return low, high if high > low else low + 1.0


def _border(mask: np.ndarray) -> tuple[list[int | None], list[int | None]]:
    """X and y of the edges between pixels inside and outside of `mask`; `None` ends each edge."""
    padded = np.pad(mask, 1)
    xs: list[int | None] = []
    ys: list[int | None] = []
    for y, x in np.argwhere(padded[1:] != padded[:-1]).tolist():  # below row y - 1, at column x - 1
        xs += [x - 1, x, None]
        ys += [y, y, None]
    for y, x in np.argwhere(padded[:, 1:] != padded[:, :-1]).tolist():
        xs += [x, x, None]
        ys += [y - 1, y, None]
    return xs, ys


def _color_bar(low: float, high: float, shared_scale: bool, scale: str, title: str) -> dict:
    bar = color_bar(title)
    if scale == "diverging" and not shared_scale:
        return {**bar, "tickvals": [low, 0, high], "ticktext": ["negative", "0", "positive"]}
    if not shared_scale:
        return {**bar, "tickvals": [low, high], "ticktext": ["low", "high"]}
    if scale == "log":
        powers = list(range(int(np.ceil(low)), int(np.floor(high)) + 1))
        return {**bar, "tickvals": powers, "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    return bar
