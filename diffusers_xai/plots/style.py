"""What every figure shares: template, colours, the time axis, and how layers and steps are named."""

import html

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.profile import DiffusionProfile, names
from diffusers_xai.profile.selection import nearest, pick_branch


FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT_COLOR = "#1f2933"
MUTED_COLOR = "#52606d"
GRID_COLOR = "#e4e7eb"

# Okabe and Ito's colours, without the yellow that is too faint on white; they differ for every kind of colour vision.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot")
_NOTE = 18  # pixels
COLOR_SCALE = "Viridis"
DIVERGING_COLOR_SCALE = ["#0072b2", "#7fb8d8", "#ffffff", "#eaae7f", "#d55e00"]

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT_FAMILY, "size": 13, "color": TEXT_COLOR},
        "colorway": LINE_COLORS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 16, "t": 24, "b": 48},
        "hoverlabel": {"bgcolor": "white", "font": {"family": FONT_FAMILY, "color": TEXT_COLOR}},
        "xaxis": {"gridcolor": GRID_COLOR, "zeroline": False, "linecolor": MUTED_COLOR, "ticks": "outside"},
        "yaxis": {"gridcolor": GRID_COLOR, "zeroline": False, "linecolor": MUTED_COLOR, "ticks": "outside"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
)


def line_style(index: int) -> dict:
    """The `index`-th line: a colour, and a dash that tells it apart where colours repeat or are not seen."""
    return {"color": LINE_COLORS[index % len(LINE_COLORS)], "dash": DASHES[index % len(DASHES)], "width": 2}


def add_note(figure: go.Figure, text: str) -> go.Figure:
    """Makes room above a figure, and writes a note there, at the right."""
    top = figure.layout.margin.t
    top = TEMPLATE.layout.margin.t if top is None else top
    if figure.layout.height is not None:
        figure.layout.height += _NOTE
    note = {"text": text, "font": {"size": 12, "color": MUTED_COLOR}, "x": 1, "xanchor": "right", "xref": "paper"}
    return figure.update_layout(
        margin_t=top + _NOTE, title={**note, "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 6}}
    )


def color_bar(title: str) -> dict:
    """A colour bar below the figure's left corner."""
    return {
        "title": {"text": title, "side": "bottom", "font": {"size": 13}},
        "orientation": "h",
        "thickness": 10,
        "len": 240,
        "lenmode": "pixels",
        "outlinewidth": 0,
        "x": 0,
        "xanchor": "left",
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "ypad": 0,
    }


def curves_over_time(array: xr.DataArray, y_title: str) -> go.Figure:
    """An empty figure for curves over the timesteps of `array`, drawn from T to 0 as the process runs."""
    timesteps = array["timestep"].values
    figure = go.Figure()
    figure.update_layout(
        template=TEMPLATE,
        height=360,
        hovermode="x unified",
        xaxis={"title": "timestep t", "range": [timesteps.max(), 0]},
        yaxis={"title": y_title},
    )
    return figure


def time_label(array: xr.DataArray, step: int) -> str:
    """`"t = 899"` for the recorded `step` of `array`."""
    return f"t = {float(array['timestep'].sel(step=step)):.4g}"


def record_at(array: xr.DataArray, step: int, sample: int) -> np.ndarray:
    """What `array` holds of one sample at a step.

    Under guidance, of the branch with the condition; of a video, its middle frame. Pictures in bytes become colours
    from -1 to 1, as samples are.

    Raises:
        ValueError: if it does not lie on an image.
    """
    if not has_positions(array):
        raise ValueError(f"Expected an array that lies on an image, got {array.name or 'one'} of dims {array.dims}.")
    return _picture(pick_branch(array.sel(step=step).isel(sample=sample), "cond"))


def has_positions(array: xr.DataArray) -> bool:
    """Whether an array lies on an image."""
    return {"height", "width"} <= set(array.dims)


def predicted_images(profile: DiffusionProfile) -> str | None:
    """The array of the images that the network predicts: decoded ones if they are recorded, else x̂_0."""
    return next((name for name in ("images", "x0") if name in profile and has_positions(profile[name])), None)


def result_image(profile: DiffusionProfile, sample: int) -> np.ndarray | None:
    """The finished image of a sample, decoded if that is recorded, as [`record_at`] gives it; `None` without one."""
    for name in ("final_image", "final_sample"):
        if name in profile and has_positions(profile[name]):
            return _picture(profile[name].isel(sample=sample))
    return None


def is_latent(array: xr.DataArray) -> bool:
    """Whether an array's channels are no colours."""
    return "channel" in array.dims and array.sizes["channel"] not in (1, 3)


def _picture(record: xr.DataArray) -> np.ndarray:
    if "frame" in record.dims:
        record = record.isel(frame=record.sizes["frame"] // 2)
    values = record.values.astype(np.float32)  # plotly has no float16
    return values / 127.5 - 1 if record.dtype == np.uint8 else values


def layer_path(profile: DiffusionProfile, layer: str) -> str:
    """The module path of `layer`, which may be an article-style alias."""
    return names.layer_path(layer, profile.layer_aliases)


def layer_name(profile: DiffusionProfile, layer: str) -> str:
    """The article-style alias of a layer where it has one, else its module path."""
    return names.short_name(layer_path(profile, layer), profile.layer_aliases)


def layer_label(profile: DiffusionProfile, layer: str, *, sep: str | None = None, group: str = "activations") -> str:
    """The name to print for a layer: its article-style alias where it has one, escaped for plotly's markup.

    With `sep`, the size of its maps follows: `"downs.0.2.fn 32×32"`.
    """
    path, label = layer_path(profile, layer), html.escape(layer_name(profile, layer))
    sizes = profile[f"{group}/{path}"].sizes
    return label if sep is None or "height" not in sizes else f"{label}{sep}{sizes['height']}×{sizes['width']}"


def recorded_layers(profile: DiffusionProfile, group: str = "activations") -> dict[str, xr.DataArray]:
    """Module path -> activations, or what else `group` names, of every layer, in the order of the profile."""
    prefix = f"{group}/"
    return {name.removeprefix(prefix): profile[name] for name in profile if name.startswith(prefix)}


def layers_over_time(profile: DiffusionProfile) -> list[str]:
    """The recorded attention layers, or all layers where none of them is one, that have at least two steps."""
    layers = [path for path, array in recorded_layers(profile).items() if array.sizes["step"] > 1]
    return [path for path in layers if is_attention(path)] or layers


def is_attention(path: str) -> bool:
    """Whether a recorded layer is an attention layer, by its module path; a profile knows no modules."""
    return "attn" in path or "attention" in path


def layers_with_maps(profile: DiffusionProfile, group: str = "activations") -> list[str]:
    """The recorded layers whose channels are maps."""
    return [path for path, array in recorded_layers(profile, group).items() if "height" in array.dims]


def step_at(array: xr.DataArray, timestep: float) -> int:
    """The recorded step of `array` whose t is nearest."""
    return int(array["step"].values[nearest(array["timestep"].values, timestep)])


def evenly_spaced_steps(array: xr.DataArray, count: int) -> list[int]:
    """At most `count` recorded steps: the beginnings of `count` equal parts of the record.

    Source: thesis fig. 5.3 (x_t every 100 of 1000 steps).
    """
    steps = [int(step) for step in array["step"].values]
    count = min(count, len(steps))
    return [steps[i * len(steps) // count] for i in range(count)]
