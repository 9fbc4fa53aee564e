"""The HTML of the pages, from the templates in `templates/`."""

from collections.abc import Sequence
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from diffusers_xai.plots.style import FONT_FAMILY, MUTED_COLOR, TEXT_COLOR


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("diffusers_xai.report"), autoescape=True, undefined=jinja2.StrictUndefined
)


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
