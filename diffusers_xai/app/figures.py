"""Which figures of the package stand on which tab; all are drawn from the profile of the session."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
import numpy as np

from diffusers_xai import DiffusionProfile, plots
from diffusers_xai.app import texts
from diffusers_xai.app.session import Session
from diffusers_xai.app.theme import themed
from diffusers_xai.plots.style import is_attention, layer_name, layers_over_time, recorded_layers


PLOTS = (
    "process", "predicted", "schematic", "max", "ssim", "distances", "attention", "volume", "energy", "sensitivity"
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


def overview(profile: DiffusionProfile, session: Session) -> dict[str, dict[str, Any]]:
    """Name of a plot -> its figure, of all that is drawn from the whole profile."""
    dark = session.dark
    return {
        "process": drawn(dark, plots.process_strip, profile),
        "predicted": drawn(dark, plots.process_strip, profile, name="x0"),
        "schematic": drawn(dark, _schematic, profile, session.blocks),
        "max": drawn(dark, plots.max_channel_maps, profile),
        "ssim": drawn(dark, plots.ssim_trajectory, profile),
        "distances": drawn(dark, plots.layer_distances, profile, layers_over_time(profile)),
        "attention": drawn(dark, plots.attention_strip, profile),
        "volume": drawn(dark, _volume, profile),
        "energy": drawn(dark, plots.gradient_energy, profile),
        "sensitivity": drawn(dark, plots.label_sensitivity, profile),
    }


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


def notes(profile: DiffusionProfile, has_attention: bool) -> dict[str, str]:
    """Name of a tab's note -> what is missing there and why; empty where nothing is."""
    attention = "" if attention_choices(profile) else texts.NO_ATTENTION_LAYER
    if "attention_outputs" not in profile:
        attention = texts.NO_PROFILE_MAP if has_attention else texts.NO_ATTENTION
    return {
        "activations_note": "" if recorded_layers(profile) else texts.NO_LAYERS,
        "attention_note": attention,
        "gradients_note": "" if "gradient_volume" in profile else texts.NO_GRADIENTS,
    }


def map_sizes(profile: DiffusionProfile, group: str, layer: str | None) -> tuple[int, int]:
    """The numbers of recorded steps and of channels of a layer."""
    if layer is None:
        return 2, 2
    sizes = profile[f"{group}/{layer}"].sizes
    return sizes["step"], sizes["channel"]


def channel_figure(session: Session, group: str, layer: str | None, index: float, channel: float) -> dict[str, Any]:
    """One channel at the `index`-th recorded step."""
    profile = session.profile
    if profile is None or not layer or f"{group}/{layer}" not in profile:
        return gr.update(value=None, visible=False)
    array = profile[f"{group}/{layer}"]
    step = int(array["step"].values[min(int(index), array.sizes["step"] - 1)])
    channel = min(int(channel), array.sizes["channel"] - 1)
    return drawn(session.dark, plots.channel_map, profile, layer, step=step, channel=channel, group=group)


def layer_attention(session: Session, layer: str | None) -> dict[str, Any]:
    """The max channel of one attention layer over time."""
    if session.profile is None or not layer:
        return gr.update(value=None, visible=False)
    return drawn(session.dark, plots.max_channel_maps, session.profile, [layer])


def comparison(session: Session) -> list[dict[str, Any]]:
    """Samples, SSIM, distance of A_t, A_t and volume of either; all hidden without two runs."""
    kept, profile, dark = session.kept, session.profile, session.dark
    if kept is None or profile is None or kept is profile:
        return [gr.update(value=None, visible=False)] * 7
    return [
        drawn(dark, plots.run_pair, kept, profile, 7),
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
