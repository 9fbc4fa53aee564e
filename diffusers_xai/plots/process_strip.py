"""The process as a row of images."""

import plotly.graph_objects as go

from diffusers_xai.plots.strip import strip
from diffusers_xai.plots.tiles import to_rgb
from diffusers_xai.profile import DiffusionProfile


def process_strip(profile: DiffusionProfile, name: str = "samples", count: int = 11) -> go.Figure:
    """Draws images of the process at equal distances, one row for each sample; the last one is the result.

    Args:
        profile (`DiffusionProfile`): A profile that holds `name`.
        name (`str`): `"samples"` for the states x_t, `"x0"` for the images x̂_0 that the network predicts from them.
        count (`int`): Number of images in a row, the result included.

    Raises:
        KeyError: if the profile does not hold `name`.

    Source: thesis fig. 5.3, 5.4.
    """
    return strip(profile, name, "x̂<sub>0</sub>" if name == "x0" else "x<sub>t</sub>", count, to_rgb)
