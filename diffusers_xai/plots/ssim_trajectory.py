"""How much the image changes from step to step."""

import plotly.graph_objects as go

from diffusers_xai.plots.style import LINE_COLORS, curves_over_time
from diffusers_xai.profile import DiffusionProfile


def ssim_trajectory(profile: DiffusionProfile) -> go.Figure:
    """Draws SSIM between each state of the process and the next: one thin line per sample, their mean bold.

    Args:
        profile (`DiffusionProfile`): A profile that holds `measures/ssim`, or `samples` to compute it from.

    Source: thesis eq. 4.1.8, fig. 5.6.
    """
    values = profile.trajectory("ssim")
    timesteps = values["timestep"].values
    figure = curves_over_time(values, "SSIM of neighbouring states")
    count = values.sizes["sample"]
    if count > 1:
        for sample in range(count):
            line = {"color": LINE_COLORS[0], "width": 1}
            y = values.isel(sample=sample).values
            figure.add_scatter(x=timesteps, y=y, name=f"sample {sample}", line=line, opacity=0.4, showlegend=False)
    name = "SSIM" if count == 1 else f"mean of {count} samples"
    line = {"color": LINE_COLORS[0], "width": 1.5 if count == 1 else 3}
    figure.add_scatter(x=timesteps, y=values.mean("sample").values, name=name, line=line, showlegend=count > 1)
    figure.update_traces(mode="lines", hovertemplate="%{y:.4f}")
    return figure
