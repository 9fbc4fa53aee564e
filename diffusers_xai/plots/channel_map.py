"""One channel of one layer at one step."""

import numpy as np
import plotly.graph_objects as go

from diffusers_xai.plots.style import layer_label, layer_path, record_at, time_label
from diffusers_xai.plots.tiles import Tile, tile_grid
from diffusers_xai.profile import DiffusionProfile


def channel_map(
    profile: DiffusionProfile,
    layer: str,
    *,
    step: int,
    channel: int,
    group: str = "activations",
    mask: np.ndarray | None = None,
    sample: int = 0,
) -> go.Figure:
    """Draws one channel of a layer at a recorded step, beside the channel that is most active then.

    Args:
        profile (`DiffusionProfile`): A profile that holds `<group>/<layer>`.
        layer (`str`): Module path or alias.
        step (`int`): A recorded step.
        channel (`int`): The channel.
        group (`str`): `"activations"` or `"gradient_maps"`.
        mask (`np.ndarray` of shape `(H, W)`, *optional*): Where the most active channel is sought.
        sample (`int`): Index of the sample.

    Raises:
        KeyError: for a layer or a step that is not recorded.
        ValueError: for a channel that the layer does not have.
    """
    path = layer_path(profile, layer)
    array = profile[f"{group}/{path}"]
    count = array.sizes["channel"]
    if not 0 <= channel < count:
        raise ValueError(f"Expected `channel` in 0..{count - 1} for {layer}, got {channel}.")
    record = record_at(array, step, sample)
    best = profile.max_channel(f"{group}/{path}", step=step, mask=mask, sample=sample)
    name = f"{layer_label(profile, path, group=group)}, {time_label(array, step)}"
    tiles: list[Tile | None] = [
        Tile(record[index], f"{name}, channel {index}", f"channel {index}") for index in (channel, best)
    ]
    gradients = group == "gradient_maps"
    return tile_grid(
        [tiles], ["chosen", "max channel c*"], [layer_label(profile, path, group=group)], shared_scale=True,
        scale="diverging" if gradients else "linear", scale_title="gradient" if gradients else "activation",
    )  # fmt: skip
