"""Figures on disk: HTML that needs no network, or a picture."""

from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go


PICTURES = (".png", ".svg", ".pdf")


def check_figure_path(path: Path) -> None:
    """Raises a ValueError if no figure can be written to `path`."""
    if path.suffix not in {".html", *PICTURES}:
        raise ValueError(f"expected a figure's file to end in .html or {', '.join(PICTURES)}, got {path.name!r}")
    if path.suffix in PICTURES and find_spec("kaleido") is None:
        raise ValueError(
            f"kaleido is not installed, which draws {path.suffix} with a Chrome: pip install kaleido, or choose .html"
        )
    if not path.absolute().parent.is_dir():
        raise ValueError(f"expected a file in a folder that exists, got {str(path)!r}")


def write_figure(figure: go.Figure, path: Path) -> None:
    """Writes the figure in the form that the file's ending names."""
    if path.suffix == ".html":
        figure.write_html(path, include_plotlyjs=True)
    else:
        figure.write_image(path, scale=2)
