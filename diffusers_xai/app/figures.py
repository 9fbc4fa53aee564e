"""Which figures of the package stand on which tab; all are drawn from the profile of the session."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
import numpy as np

from diffusers_xai import DiffusionProfile, plots
from diffusers_xai.app import texts
from diffusers_xai.app.session import Result
from diffusers_xai.app.settings import SettingsError, shortened
from diffusers_xai.app.theme import themed
from diffusers_xai.app.values import whole
from diffusers_xai.plots.style import (
    evenly_spaced_steps,
    is_attention,
    layer_name,
    layers_over_time,
    record_at,
    recorded_layers,
    time_label,
)
from diffusers_xai.plots.tiles import Tile, tile_grid


PLOTS = (
    "process", "predicted", "schematic", "max", "ssim", "distances", "attention", "weights_plot", "volume", "energy",
    "sensitivity", "gradient_attention",
)  # fmt: skip


def drawn(dark: bool, function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """A plot's new figure; hidden where the profile does not hold what it needs."""
    try:
        figure = themed(function(*args, **kwargs), dark)
    except (KeyError, ValueError):
        figure = None
    return gr.update(value=figure, visible=figure is not None)


def layer_choices(profile: DiffusionProfile, group: str = "activations") -> list[tuple[str, str]]:
    """(name, path) of the layers whose channels are maps."""
    return [
        (layer_name(profile, path), path)
        for path, array in recorded_layers(profile, group).items()
        if "height" in array.dims
    ]


def attention_choices(profile: DiffusionProfile) -> list[tuple[str, str]]:
    """(name, path) of the recorded attention layers."""
    return [(name, path) for name, path in layer_choices(profile) if is_attention(path)]


def overview(result: Result, dark: bool) -> dict[str, dict[str, Any]]:
    """Name of a plot -> its figure, of all that is drawn from the whole profile."""
    profile = result.profile
    return {
        "process": drawn(dark, plots.process_strip, profile),
        "predicted": drawn(dark, plots.process_strip, profile, name="x0"),
        "schematic": drawn(dark, _schematic, profile, result.blocks),
        "max": drawn(dark, plots.max_channel_maps, profile, mask=result.region),
        "ssim": drawn(dark, plots.ssim_trajectory, profile),
        "distances": drawn(dark, plots.layer_distances, profile, layers_over_time(profile)),
        "attention": drawn(dark, plots.attention_strip, profile),
        "weights_plot": drawn(dark, weight_maps, profile),
        "volume": drawn(dark, _volume, profile),
        "energy": drawn(dark, plots.gradient_energy, profile),
        "sensitivity": drawn(dark, plots.label_sensitivity, profile),
        "gradient_attention": drawn(dark, plots.gradient_attention, profile),
    }


def weight_maps(profile: DiffusionProfile) -> Any:
    """How much each place of the image is looked at, by softmax attention: one row a layer, columns over time.

    Raises:
        KeyError: If no weights over the image are recorded.
    """
    rows, labels, columns = [], [], []
    for path, array in recorded_layers(profile, "attention_weights").items():
        if not {"head", "height", "width"} <= set(array.dims) or "pixel" in array.dims:
            continue
        steps = evenly_spaced_steps(array, 11)
        columns = [time_label(array, step) for step in steps]
        maps = [record_at(array, step, 0).mean(axis=0) for step in steps]
        name = layer_name(profile, path)
        labels.append(name)
        rows.append([Tile(values, f"{name}, {time}") for values, time in zip(maps, columns, strict=True)])
    if not rows:
        raise KeyError("attention_weights")
    return tile_grid(rows, columns, labels, scale_title="mean weight")


def _schematic(profile: DiffusionProfile, blocks: Mapping[str, list[str]]) -> Any:
    recorded = set(recorded_layers(profile))
    lit = {
        block: "<br>".join(layer_name(profile, path) for path in paths if path in recorded)
        for block, paths in blocks.items()
        if recorded & set(paths)
    }
    if recorded and not lit:
        raise KeyError("the profile is of another model")
    return plots.unet_schematic(list(blocks), lit)


def _volume(profile: DiffusionProfile) -> Any:
    # Three scenes share the page's width: seen from further away, their axes do not cover each other.
    return plots.gradient_volume(profile).update_scenes(camera_eye={"x": 1.8, "y": -2.95, "z": 1.1})


def notes(result: Result, has_attention: bool, has_weights: bool) -> dict[str, str]:
    """Name of a note -> what is missing there and why; empty where nothing is."""
    profile, region = result.profile, result.region
    attention = "" if attention_choices(profile) else texts.NO_ATTENTION_LAYER
    if "attention_outputs" not in profile:
        attention = texts.NO_PROFILE_MAP if has_attention else texts.NO_ATTENTION
    weights = "" if recorded_layers(profile, "attention_weights") else texts.NO_WEIGHTS
    gradients = texts.NO_GRADIENTS
    if "gradient_volume" in profile:
        some = profile["gradient_volume"].sizes["pixel"]
        gradients = "" if region is None or some >= region.sum() else texts.thinned(some, region.sum())
    return {
        "activations_note": "" if recorded_layers(profile) else texts.NO_LAYERS,
        "attention_note": attention,
        "weights_note": weights if has_weights or not has_attention else texts.LINEAR,
        "gradients_note": gradients,
    }


def map_sizes(profile: DiffusionProfile, group: str, layer: str | None) -> tuple[int, int]:
    """The numbers of recorded steps and of channels of a layer."""
    if layer is None:
        return 2, 2
    sizes = profile[f"{group}/{layer}"].sizes
    return sizes["step"], sizes["channel"]


def channel_figure(result: Result, dark: bool, group: str, layer: Any, index: int, channel: Any) -> tuple[Any, str]:
    """One channel at the `index`-th recorded step, beside c*; and what the two maps are."""
    if not isinstance(layer, str) or f"{group}/{layer}" not in result.profile:
        return gr.update(value=None, visible=False), ""
    profile = result.profile
    array = profile[f"{group}/{layer}"]
    step = _step(array, index)
    channel = whole(channel, "Channel", 0, array.sizes["channel"] - 1)
    figure = drawn(
        dark, plots.channel_map, profile, layer, step=step, channel=channel, group=group, mask=result.region
    )
    best = profile.max_channel(f"{group}/{layer}", step=step, mask=result.region)
    where = "the image" if result.region is None else f"the region of {result.region.sum()} pixels"
    total = profile.provenance.get("num_inference_steps")
    steps = f"step {step} of {total}" if isinstance(total, int) else f"step {step}"
    return figure, (
        f"**{layer_name(profile, layer)} at {time_label(array, step)}** ({steps}): channel {channel}, and c* = {best},"
        f" the channel with the largest sum over {where}."
    )


def max_channel(result: Result, layer: Any, index: int) -> int:
    """The channel c* of a layer at the `index`-th recorded step, within the region."""
    if not isinstance(layer, str) or f"activations/{layer}" not in result.profile:
        raise SettingsError(f"Expected a layer of which a map is shown, got {shortened(layer)}.")
    name = f"activations/{layer}"
    return int(result.profile.max_channel(name, step=_step(result.profile[name], index), mask=result.region))


def _step(array: Any, index: int) -> int:
    return int(array["step"].values[min(index, array.sizes["step"] - 1)])


def layer_attention(result: Result, dark: bool, layer: Any) -> dict[str, Any]:
    """The max channel of one attention layer over time."""
    if not isinstance(layer, str) or f"activations/{layer}" not in result.profile:
        return gr.update(value=None, visible=False)
    return drawn(dark, plots.max_channel_maps, result.profile, [layer], mask=result.region)


def comparison(kept: DiffusionProfile, profile: DiffusionProfile, dark: bool) -> list[dict[str, Any]]:
    """Samples x_t, SSIM of x_t, distance of A_t, A_t and volume of either; hidden where the two cannot be compared."""
    return [
        drawn(dark, plots.run_pair, kept, profile, 7, name="samples"),
        drawn(dark, plots.run_similarity, kept, profile),
        drawn(dark, plots.attention_distance, kept, profile),
        *(drawn(dark, plots.attention_strip, run, 6) for run in (kept, profile)),
        *(drawn(dark, plots.gradient_volume, run, [600.0, 100.0]) for run in (kept, profile)),
    ]


def final_image(profile: DiffusionProfile) -> np.ndarray:
    """The last state of the first sample (channel, height, width)."""
    name = "final_sample" if "final_sample" in profile else "samples"
    array = profile[name].isel(sample=0)
    return (array if name == "final_sample" else array.isel(step=-1)).values
