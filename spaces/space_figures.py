"""Which figures of the package stand on which tab; all are drawn from the profile of the session."""

from typing import Any

import numpy as np

from diffusers_xai import DiffusionProfile, plots
from diffusers_xai.plots.style import layer_name, layers_over_time, recorded_layers


def drawn(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A figure; `None`, an empty place, where the profile does not hold what it needs."""
    try:
        figure = function(*args, **kwargs)
    except (KeyError, ValueError):
        return None
    return figure


def layer_choices(profile: DiffusionProfile, group: str = "activations") -> list[tuple[str, str]]:
    """(name, path) of the layers whose channels are maps."""
    return [
        (layer_name(profile, path), path)
        for path, array in recorded_layers(profile, group).items()
        if "height" in array.dims
    ]


def overview(profile: DiffusionProfile, blocks: dict[str, list[str]]) -> list[Any]:
    """Process, predicted images, schematic, max channels, SSIM, distances, A_t, volume, energy, sensitivity."""
    recorded = set(recorded_layers(profile))
    lit = {
        block: "<br>".join(layer_name(profile, path) for path in paths if path in recorded)
        for block, paths in blocks.items()
        if recorded & set(paths)
    }
    return [
        drawn(plots.process_strip, profile),
        drawn(plots.process_strip, profile, name="x0"),
        drawn(plots.unet_schematic, list(blocks), lit),
        drawn(plots.max_channel_maps, profile),
        drawn(plots.ssim_trajectory, profile),
        drawn(plots.layer_distances, profile, layers_over_time(profile)),
        drawn(plots.attention_strip, profile),
        drawn(plots.gradient_volume, profile),
        drawn(plots.gradient_energy, profile),
        drawn(plots.label_sensitivity, profile),
    ]


def channel_figure(
    profile: DiffusionProfile | None, layer: str | None, index: float, channel: float, group: str
) -> Any:
    """One channel at the `index`-th recorded step."""
    if profile is None or not layer or f"{group}/{layer}" not in profile:
        return None
    array = profile[f"{group}/{layer}"]
    step = int(array["step"].values[min(int(index), array.sizes["step"] - 1)])
    channel = min(int(channel), array.sizes["channel"] - 1)
    return plots.channel_map(profile, layer, step=step, channel=channel, group=group)


def comparison(kept: DiffusionProfile | None, profile: DiffusionProfile | None) -> list[Any]:
    """Samples, SSIM, distance of A_t, A_t and volume of either."""
    if kept is None or profile is None:
        return [None] * 7
    return [
        drawn(plots.run_pair, kept, profile, 7),
        drawn(plots.run_similarity, kept, profile),
        drawn(plots.attention_distance, kept, profile),
        *(drawn(plots.attention_strip, run, 6) for run in (kept, profile)),
        *(drawn(plots.gradient_volume, run, [600.0, 100.0]) for run in (kept, profile)),
    ]


def final_image(profile: DiffusionProfile) -> np.ndarray:
    """The last state of the first sample (channel, height, width)."""
    name = "final_sample" if "final_sample" in profile else "samples"
    array = profile[name].isel(sample=0)
    return (array if name == "final_sample" else array.isel(step=-1)).values
