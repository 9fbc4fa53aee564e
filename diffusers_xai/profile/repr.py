"""How a profile shows itself: a short text, and a table with thumbnails for notebooks."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from diffusers_xai.profile.names import describe
from diffusers_xai.profile.pictures import png_data_uri, to_rgb


MAX_THUMBNAILS = 11
THUMBNAIL_HEIGHT = 64
Arrays = Mapping[str, xr.DataArray]


def to_text(arrays: Arrays, provenance: Mapping[str, Any]) -> str:
    """One line on the run and one per array. Reads no array.

    Args:
        arrays (`Mapping[str, xarray.DataArray]`): The arrays or their headers, by name.
        provenance (`Mapping[str, Any]`): How the run was made.

    Returns:
        `str`: Several lines.
    """
    rows = _rows(arrays)
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    lines = [
        "  ".join([text.ljust(width) for text, width in zip(row, widths, strict=False)] + [row[4]]) for row in rows
    ]
    return "\n".join([f"DiffusionProfile: {_headline(arrays, provenance)}", *(f"  {line}".rstrip() for line in lines)])


def to_html(profile: Mapping[str, xr.DataArray], arrays: Arrays, provenance: Mapping[str, Any]) -> str:
    """The text's table as HTML, below a strip of the first sample at up to 11 recorded steps. Reads `samples` alone.

    Args:
        profile (`Mapping[str, xarray.DataArray]`): Gives the samples.
        arrays (`Mapping[str, xarray.DataArray]`): The arrays or their headers, by name.
        provenance (`Mapping[str, Any]`): How the run was made.

    Returns:
        `str`: HTML without scripts or outside references.
    """
    header = "".join(
        f"<th style='text-align:left'>{title}</th>" for title in ("array", "dims", "dtype", "size", "steps")
    )
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(text)}</td>" for text in row) + "</tr>"
        for row in _rows(arrays)
    )
    return (
        f"<div><b>DiffusionProfile</b> {escape(_headline(arrays, provenance))}{_strip(profile)}"
        f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _headline(arrays: Arrays, provenance: Mapping[str, Any]) -> str:
    facts = []
    if provenance.get("num_inference_steps"):
        facts.append(f"{provenance['num_inference_steps']} steps")
    for part in ("scheduler", "model"):
        if isinstance(provenance.get(part), Mapping) and provenance[part].get("class"):
            facts.append(str(provenance[part]["class"]))
    for title, key in (("labels", "class_labels"), ("seeds", "seeds")):
        values = provenance.get(key)
        if isinstance(values, list) and any(value is not None for value in values):
            facts.append(f"{title} {describe(values)}")
    facts.append(f"{len(arrays)} arrays, {format_size(sum(array.nbytes for array in arrays.values()))}")
    if provenance.get("complete") is False:
        facts.append("incomplete")
    return ", ".join(facts)


def _rows(arrays: Arrays) -> list[tuple[str, str, str, str, str]]:
    """Name, dims with sizes, dtype, size and recorded steps of every array."""
    rows = []
    for name, array in arrays.items():
        dims = " × ".join(f"{dim} {size}" for dim, size in zip(array.dims, array.shape, strict=True))
        steps = array.coords["step"].values.tolist() if "step" in array.dims else []
        span = f"steps {_steps(steps)}" if steps else ""
        rows.append((name, dims, str(array.dtype), format_size(array.nbytes), span))
    return rows


def _steps(steps: list[int]) -> str:
    if len(steps) > 2 and len(strides := set(np.diff(steps).tolist())) == 1:
        stride = strides.pop()
        return f"{steps[0]}–{steps[-1]}" + (f" every {stride}" if stride > 1 else "")
    return describe(steps)


def format_size(nbytes: float) -> str:
    """A number of bytes as text: `"12.3 MB"`."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"


def _strip(profile: Mapping[str, xr.DataArray]) -> str:
    """Thumbnails of the first sample, if the samples are images of one or three channels in [-1, 1]."""
    if "samples" not in profile:
        return ""
    try:
        samples = profile["samples"]
    except (OSError, ValueError) as error:
        return f"<p>{escape(str(error))}</p>"
    if samples.dims != ("step", "sample", "channel", "height", "width") or samples.sizes["channel"] not in (1, 3):
        return ""
    positions = np.unique(np.linspace(0, samples.sizes["step"] - 1, MAX_THUMBNAILS).round().astype(int))
    return "<div>" + "".join(_thumbnail(samples.isel(step=position, sample=0)) for position in positions) + "</div>"


def _thumbnail(sample: xr.DataArray) -> str:
    uri = png_data_uri(to_rgb(sample.transpose("channel", "height", "width").values))
    timestep = f", t={sample['timestep'].item():g}" if "timestep" in sample.coords else ""
    return (
        f"<img src='{uri}' title='step {int(sample['step'])}{timestep}' "
        f"style='display:inline;height:{THUMBNAIL_HEIGHT}px;margin:1px;image-rendering:pixelated'>"
    )
