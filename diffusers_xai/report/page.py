"""The HTML of the pages and of the sections on them, from the templates in `templates/`."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from diffusers_xai.plots.style import FONT_FAMILY, MUTED_COLOR, TEXT_COLOR


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("diffusers_xai.report"), autoescape=True, undefined=jinja2.StrictUndefined
)
# A wheel over a scene in space shall scroll the page, as elsewhere.
_CONFIG = {"responsive": True, "displaylogo": False, "scrollZoom": False, "modeBarButtons": [["toImage"]]}


def fill(template: str, **values: Any) -> str:
    """A template's HTML; values are escaped unless the template says that they are HTML themselves."""
    return _TEMPLATES.get_template(template).render(**values)


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document with plotly.js inside.

    Args:
        title (`str`): Plain text.
        body (`Sequence[str]`): HTML of the page's parts.
    """
    colors = {"text_color": TEXT_COLOR, "muted_color": MUTED_COLOR, "font_family": FONT_FAMILY}
    return fill("page.html", title=title, body=body, plotly=get_plotlyjs(), **colors)


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


def render(section: Section, more: str = "") -> str:
    """The section's HTML, with `more` of it after the figure."""
    figure = render_figure(section.draw(), section.alt, wide=section.wide)
    return fill("section.html", section=section, figure=figure, more=more)


def render_figure(figure: go.Figure, alt: str, *, wide: bool = False) -> str:
    """A figure's HTML; `alt` tells those who do not see it what it shows."""
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)
    return f'<div class="figure{" wide" * wide}" role="img" aria-label="{html.escape(alt)}" tabindex="0">{drawn}</div>'
