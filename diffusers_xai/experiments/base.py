"""What an experiment is, and what it returns: labelled numbers that can be saved, tabulated and drawn."""

import importlib.metadata
import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from diffusers_xai.analysis import interval_worth
from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.experiments.judging import check_judge
from diffusers_xai.experiments.nulls import Null
from diffusers_xai.experiments.parts import kept_parts
from diffusers_xai.experiments.requests import told
from diffusers_xai.experiments.sampling import Sampling
from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.style import add_note
from diffusers_xai.profile.names import storable_array
from diffusers_xai.profile.storage import read_profile, write_profile


ALL_LABELS, SPANNED_LABELS = 1000, 1001
EXPERIMENTS: "dict[str, Experiment]" = {}
_PICTURE_DIMS = ("rgb", "channel", "height", "width", "map_height", "map_width")


@dataclass(frozen=True)
class ExperimentResult:
    """The outcome of an experiment.

    Args:
        name (`str`): Name of the experiment in `EXPERIMENTS`.
        data (`xarray.Dataset`): Labelled numbers; `seed` is a dim wherever there is one value per seed.
        settings (`dict[str, Any]`): How it was made, JSON-able: model, labels, seeds, steps, versions ….
    """

    name: str
    data: xr.Dataset
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dataframe(self) -> pd.DataFrame:
        """The numbers as one tidy table, a row for each seed, step, layer and so on.

        Of pictures it has the mean; those of one seed alone are left out.
        """
        averaged = {
            name: array.mean([dim for dim in _PICTURE_DIMS if dim in array.dims])
            for name, array in self.data.data_vars.items()
            if "seed" in array.dims
        }
        return xr.Dataset(averaged, {"seed": self.data["seed"]}).to_dataframe().reset_index()

    def plot(self) -> go.Figure:
        """Draws the numbers; of few seeds, the figure says what its intervals are worth."""
        figure = EXPERIMENTS[self.name].plot(self)
        worth = interval_worth(self.data.sizes["seed"])
        return add_note(figure, worth) if worth else figure

    def plot_images(self) -> go.Figure | None:
        """Draws the images and maps behind the numbers, of the first seed; `None` where the experiment keeps none."""
        draw = EXPERIMENTS[self.name].plot_images
        return None if draw is None else draw(self)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes a new folder, which appears when it is complete: JSON and safetensors, laid out as a profile's.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false, or what is there is no result.
            OSError: If writing fails; what was there stays.
        """
        arrays = {str(name): array for name, array in self.data.data_vars.items()}
        facts = {"experiment": self.name, "settings": self.settings}
        write_profile(Path(path), arrays, facts, overwrite, validate=storable_array)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no result at `path`.
            ValueError: If it is damaged, of another format version, or a profile.
        """
        facts, arrays = read_profile(Path(path), validate=storable_array)
        if facts.get("experiment") not in EXPERIMENTS:
            raise ValueError(
                f"{path}: expected a result of {', '.join(EXPERIMENTS)}, got {facts.get('experiment')!r}."
            )
        data = xr.Dataset({name: stored.read().load() for name, stored in arrays.items()})
        return cls(facts["experiment"], data, facts["settings"])


@dataclass(frozen=True)
class Experiment:
    """An entry of `EXPERIMENTS`.

    Args:
        name (`str`): What the command calls it.
        title (`str`): Heading.
        text (`str`): One paragraph: what is done, and how to read the figure.
        source (`str`): Where the thesis has it, or else the paper.
        measure (`Callable`): `(pipe, sampling, **options) -> xarray.Dataset`; attributes of the data set go into the
            result's settings.
        plot (`Callable`): Draws its result.
        labels (`int`): How many labels it takes: 1 (or none, of an unconditional model), 2, `SPANNED_LABELS` (two, and
            what lies between them, see `labels_between`), or `ALL_LABELS`.
        seeds (`int`): How many seeds the command takes by default, and
        steps (`int`): how many denoising steps.
        min_seeds (`int`): How many seeds it needs.
        runs (`float`): What a seed costs, in plain runs of one image (a function of how many labels, words or concepts
            there are, where that matters), and
        calls (`float`): in calls of the network for each pixel of the region: about, control included.
        once (`float`): Calls of the network besides, however many seeds there are.
        plot_images (`Callable`, *optional*): Draws the images and maps behind its numbers.
        table (`Callable`, *optional*): Its numbers in a few rows, for the report.
        judged (`bool`): Whether `measure` takes a `judge`, see `Judge`.
        plan (`Callable`, *optional*): `(pipe, sampling, **options) -> str`, what it will cost, where that is not plain
            from seeds and steps.
        nulls (`tuple[str, ...]`): The controls that it knows, see `NULLS`; the first one is taken by default.
        region (`str`, *optional*): Where `measure` takes a `mask`, what the command passes for the faces of the model
            inside the package: `"eyes"`, `"face"`, or `"image"` for all of it.
        needs (`str`, *optional*): What it takes besides one model of any kind, such as other `"checkpoints"`, or the
            thesis's `"blocks"`, layers of the names in its claims; it is then none of the command's `all`.
        may_take (`str`, *optional*): What it can do without: `"students"`, checkpoints distilled from the one;
            `"concepts"`, a function that tells where things are; `"prompt"`, of a pipeline that takes one, and
            `"prompts"`, two of them, in place of labels.
    """

    name: str
    title: str
    text: str
    source: str
    measure: Callable[..., xr.Dataset]
    plot: Callable[[ExperimentResult], go.Figure]
    labels: int = 1
    seeds: int = 30
    steps: int = 1000
    min_seeds: int = 1
    runs: float | Callable[[int], float] = 2.0
    calls: float = 0.0
    once: float = 0.0
    nulls: tuple[str, ...] = ()
    region: str | None = None
    plot_images: Callable[[ExperimentResult], go.Figure] | None = None
    table: Callable[[ExperimentResult], pd.DataFrame] | None = None
    needs: str | None = None
    judged: bool = False
    may_take: str | None = None
    plan: Callable[..., str] | None = None

    def takes(self, option: str) -> bool:
        """Whether `measure` has an option of this name."""
        return option in inspect.signature(self.measure).parameters

    def run(
        self,
        pipe: XAIPipeline,
        sampling: Sampling | None = None,
        *,
        parts: str | os.PathLike | None = None,
        request: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ExperimentResult:
        """Measures.

        Args:
            pipe ([`XAIPipeline`]): The model.
            sampling ([`Sampling`], *optional*): Labels, seeds and steps; by default as many seeds and steps as the
                command takes, without a label.
            parts (`str` or `os.PathLike`, *optional*): A folder that gets a parquet file of each batch of seeds, see
                [`kept_parts`]. What is there already is not measured again.
            request (`Mapping[str, Any]`, *optional*): What `parts` has to be made for, JSON-able; by default the
                sampling, the options and a digest of the model. A function counts by its name alone.
            options: Of the experiment's own, see its `measure`; `null` is its control, by name or, where it is another
                model, a pipeline.

        Raises:
            ValueError: If the labels, a judge or an option do not fit, or `parts` was made for another request.
            BlockingIOError: If another process writes `parts`.
        """
        sampling = sampling or Sampling(seeds=range(self.seeds), steps=self.steps)
        if self.labels == SPANNED_LABELS and len(sampling.labels) < 2:
            raise ValueError(f"{self.name}: expected at least two labels, got {list(sampling.labels)}.")
        compares_labels = self.labels == 2 and options.get("prompts") is None and options.get("between") != "seeds"
        if compares_labels and (len(sampling.labels) != 2 or sampling.labels[0] == sampling.labels[1]):
            raise ValueError(f"{self.name}: expected two different labels, got {list(sampling.labels)}.")
        if len(sampling.seeds) < self.min_seeds:
            raise ValueError(f"{self.name}: expected at least {self.min_seeds} seeds, got {len(sampling.seeds)}.")
        null = options.setdefault("null", self.nulls[0])
        if null is None or (isinstance(null, str) and null not in (*self.nulls, "none")):
            raise ValueError(f"{self.name}: expected a null of {', '.join((*self.nulls, 'none'))}, got {null!r}.")
        if options.get("judge") is not None and isinstance(pipe, XAIPipeline):
            check_judge(options["judge"], pipe)
        provenance = _provenance(pipe, sampling)
        if parts is not None and request is None:
            request = {**provenance, "versions": None, "experiment": self.name, **told({"model": pipe, **options})}
        with nullcontext() if parts is None else kept_parts(parts, request or {}):
            data = self.measure(pipe, sampling, **options)
        return ExperimentResult(self.name, data, {**provenance, "null": _null_name(null), **data.attrs})


def register(experiment: Experiment) -> Experiment:
    """Adds an experiment to `EXPERIMENTS`, under its name."""
    EXPERIMENTS[experiment.name] = experiment
    return experiment


def _null_name(null: Null) -> str:
    """A control by name: a pipeline with a closed form is a Gaussian fitted before."""
    closed = isinstance(null, XAIPipeline) and isinstance(null.unet, ClosedFormDenoiser)
    return null if isinstance(null, str) else "gaussian" if closed else type(null.unet).__name__


def _provenance(pipe: XAIPipeline, sampling: Sampling) -> dict[str, Any]:
    config = get_denoiser(pipe).config
    return {
        "checkpoint": str(pipe.config.get("_name_or_path") or ""),
        "scheduler": type(pipe.scheduler).__name__,
        "attributes": list(config.get("class_attributes") or ()),
        "num_class_embeds": config.get("num_class_embeds"),
        "versions": {name: _version(name) for name in ("diffusers_xai", "diffusers", "torch")},
        **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(sampling).items()},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
