"""What an experiment is, and how it says how it was made."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.denoisers import Denoiser
from diffusers_xai.experiments.result import ExperimentResult
from diffusers_xai.pipelines import XAIPipeline


ALL_LABELS = 1000


@dataclass(frozen=True)
class Experiment:
    """An entry of `EXPERIMENTS`.

    Args:
        name (`str`): What the command calls it.
        title (`str`): Heading.
        text (`str`): One paragraph: what is done, and how to read the figure.
        source (`str`): Where the thesis has it.
        run (`Callable`): `(pipe, **settings) -> ExperimentResult`.
        plot (`Callable`): Draws its result.
        labels (`int`): How many labels it takes: 1 (or none, of an unconditional model), 2, or `ALL_LABELS`.
        seeds (`int`): How many seeds the command takes by default, and
        steps (`int`): how many denoising steps.
        plot_images (`Callable`, *optional*): Draws the images and maps behind its numbers.
        table (`Callable`, *optional*): Its numbers in a few rows, for the report.
        region (`str`, *optional*): Where `run` takes a `mask`, what the command passes for the faces of the model
            inside the package: `"eyes"` or `"face"`.
    """

    name: str
    title: str
    text: str
    source: str
    run: Callable[..., ExperimentResult]
    plot: Callable[[ExperimentResult], go.Figure]
    labels: int = 1
    seeds: int = 30
    steps: int = 1000
    region: str | None = None
    plot_images: Callable[[ExperimentResult], go.Figure] | None = None
    table: Callable[[ExperimentResult], pd.DataFrame] | None = None


def provenance(pipe: XAIPipeline, seeds: Sequence[int], **settings: Any) -> dict[str, Any]:
    """How a result was made, as JSON-able data: model, scheduler, seeds, versions, and the settings given."""
    names = ("diffusers_xai", "diffusers", "torch")
    versions = {name: importlib.metadata.version(name.replace("_", "-")) for name in names if _installed(name)}
    return {
        "checkpoint": str(pipe.config.get("_name_or_path") or ""),
        "scheduler": type(pipe.scheduler).__name__,
        "attributes": list(pipe.unet.config.get("class_attributes") or ()),
        "num_class_embeds": pipe.unet.config.get("num_class_embeds"),
        "seeds": list(seeds),
        "versions": versions,
        **settings,
    }


def layer_names(denoiser: Denoiser, paths: Sequence[str]) -> list[str]:
    """What to call layers: their article-style alias where they have one, the shortest of several, or their path."""
    names = {path: alias for alias, path in sorted(denoiser.aliases.items(), key=lambda pair: -len(pair[0]))}
    return [names.get(path, path) for path in paths]


def label_bits(settings: dict[str, Any], label: int) -> str:
    """A label in short: its bits, or its number where they have no names."""
    attributes = settings["attributes"]
    return f"{label:0{len(attributes)}b}" if attributes else f"label {label}"


def label_text(settings: dict[str, Any], label: int) -> str:
    """A label as a reader knows it: its bits, and the attributes that hold."""
    attributes, bits = settings["attributes"], label_bits(settings, label)
    if not attributes:
        return bits
    names = [name.replace("_", " ").lower() for name, bit in zip(attributes, bits, strict=True) if bit == "1"]
    return f"{bits} ({', '.join(names) or 'none'})"


def interval_text(facts: xr.Dataset) -> str:
    """What `analysis.summary` says of one mean, for a table: the mean and its interval."""
    return f"{float(facts['mean']):.3f} ({float(facts['low']):.3f} to {float(facts['high']):.3f})"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
