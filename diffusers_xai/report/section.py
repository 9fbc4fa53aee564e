"""One section of the page: a figure with its words."""

import html
from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go

from diffusers_xai.plots.style import has_positions
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.report.page import fill


# A wheel over a scene in space shall scroll the page, as elsewhere.
_CONFIG = {"responsive": True, "displaylogo": False, "scrollZoom": False, "modeBarButtons": [["toImage"]]}


@dataclass(frozen=True)
class Section:
    """One figure and its words.

    Args:
        title (`str`): Heading.
        text (`str`): How to read the figure, HTML.
        alt (`str`): What the figure shows, for those who do not see it.
        source (`str`): Where the method is defined.
        draw (`Callable[[], go.Figure]`): Makes the figure.
        wide (`bool`): Whether the figure scrolls sideways on narrow screens instead of shrinking.
    """

    title: str
    text: str
    alt: str
    source: str
    draw: Callable[[], go.Figure]
    wide: bool = False


def can_compare_samples(profile: DiffusionProfile) -> bool:
    """Whether there are two states of at least the size of SSIM's window."""
    if "samples" not in profile:
        return False
    sizes = profile["samples"].sizes
    is_image = has_positions(profile["samples"]) and "frame" not in sizes
    return is_image and sizes["step"] + ("final_sample" in profile) > 1 and min(sizes["height"], sizes["width"]) >= 7


def render(section: Section, more: str = "") -> str:
    """The section's HTML, with `more` of it after the figure."""
    figure = render_figure(section.draw(), section.alt, wide=section.wide)
    return fill("section.html", section=section, figure=figure, more=more)


def render_figure(figure: go.Figure, alt: str, *, wide: bool = False) -> str:
    """A figure's HTML; `alt` tells those who do not see it what it shows."""
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)
    return f'<div class="figure{" wide" * wide}" role="img" aria-label="{html.escape(alt)}" tabindex="0">{drawn}</div>'
