"""The same measurement over many seeds: in batches, with progress, and shared by processes."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
import xarray as xr
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from diffusers_xai.experiments.parts import parts_of
from diffusers_xai.experiments.processes import process_state
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import Edits, RecordSpec


MAX_SHOWN = 3  # seeds whose pictures are kept, where it is more than the first one's
MAX_HELD = 64  # seeds whose arrays are kept, where a number needs those of several seeds at once
OTHER_NOISE = 10**6  # added to a seed: noise that no seed of an experiment has
_LIMITS = {"shown": MAX_SHOWN, "held": MAX_HELD}
_BAR_OPTIONS: ContextVar[Mapping[str, Any]] = ContextVar("bar_options", default=MappingProxyType({"disable": None}))

_OF: ContextVar[str] = ContextVar("of", default="")


@contextmanager
def measured_of(name: str) -> Iterator[None]:
    """Within it, what is measured is said to be of `name`: where the same is measured of several runs."""
    token = _OF.set(f", {name}")
    try:
        yield
    finally:
        _OF.reset(token)


@contextmanager
def show_progress(options: Mapping[str, Any]) -> Iterator[None]:
    """Shows the seeds that are done by a tqdm bar with `options`; by default by a bar on terminals alone."""
    token = _BAR_OPTIONS.set(options)
    try:
        yield
    finally:
        _BAR_OPTIONS.reset(token)


@dataclass(frozen=True)
class Sampling:
    """What an experiment samples.

    Args:
        labels (`Sequence[int]`): One label, two where labels are compared, none for an unconditional model.
        seeds (`Sequence[int]`): One run for each.
        steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        batch_size (`int`): Images in one call of the network, at most.

    Raises:
        ValueError: If there is no seed, one stands twice, or a number is below 1.
    """

    labels: Sequence[int] = ()
    seeds: Sequence[int] = range(30)
    steps: int = 100
    guidance_scale: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("labels", "seeds"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"Expected at least one seed, each once, got {list(self.seeds)}.")
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"Expected steps and batch_size of at least 1, got {self.steps} and {self.batch_size}.")

    def every(self, records: int) -> int:
        """The stride at which about `records` steps are recorded."""
        return max(1, self.steps // records)

    def profile(
        self,
        pipe: XAIPipeline,
        seeds: Sequence[int],
        record: Sequence[RecordSpec],
        edits: Edits = (),
        labels: Sequence[int] | None = None,
    ) -> DiffusionProfile:
        """Samples an image for each seed, all of the first label, or one for each seed and label of `labels`.

        Args:
            pipe ([`XAIPipeline`]): The model.
            seeds (`Sequence[int]`): Some of the seeds.
            record (`Sequence[RecordSpec]`): What to record.
            edits (`Edits`): What to change. With one seed and a list of edits for each image, all have its noise.
            labels (`Sequence[int]`, *optional*): The runs of the first one stand before those of the next.

        Returns:
            [`DiffusionProfile`]: What was recorded.
        """
        first = self.labels[0] if self.labels else None
        variants = len(edits) if len(seeds) == 1 and edits and isinstance(edits[0], Sequence) else 1
        copies = len(labels) if labels is not None else variants
        output: Any = pipe(
            class_labels=first if labels is None else [label for label in labels for _ in seeds],
            batch_size=len(seeds) * copies,
            num_inference_steps=self.steps,
            generator=generators(seeds, copies),
            guidance_scale=self.guidance_scale,
            record=record,
            edits=edits,
            output_type="pt",
        )
        return output.profile

    def over_seeds(
        self,
        measure: Callable[[list[int]], xr.Dataset],
        description: str,
        *,
        seeds_at_once: int | None = None,
        at_least: int = 1,
        of_first: Sequence[str] = (),
        of_few: Sequence[str] = (),
        of_held: Sequence[str] = (),
    ) -> xr.Dataset:
        """Calls `measure` with batches of seeds and joins what it returns along the dim `seed`.

        Under `accelerate launch` the batches are spread over the processes, and every process gets the whole. A seed's
        numbers depend on the batch that it is in at most by rounding, and batches do not depend on the processes.
        Within [`kept_parts`] each batch is kept on disk, and what is there already is not measured again.

        Args:
            measure (`Callable`): Takes seeds, returns a data set with a dim `seed` in the order of the seeds.
            description (`str`): What the progress bar says.
            seeds_at_once (`int`, *optional*): Seeds in a batch; `batch_size` if `None`.
            at_least (`int`, defaults to 1): Seeds that a batch needs. If fewer are left at the end, they join the
                batch before.
            of_first (`Sequence[str]`): Variables, pictures say, that are kept of the first seed alone, without the
                dim; those that there are.
            of_few (`Sequence[str]`): Those that are kept of the first three seeds, their dim then being `shown`, and
            of_held (`Sequence[str]`): of the first 64, their dim being `held`. Whatever else has a dim `seed` stays in
                memory: numbers, not arrays.
        """
        description += _OF.get()
        all_batches = batches(self.seeds, max(at_least, self.batch_size if seeds_at_once is None else seeds_at_once))
        if len(all_batches) > 1 and len(all_batches[-1]) < at_least:
            all_batches[-2:] = [all_batches[-2] + all_batches[-1]]
        state = process_state()
        parts = parts_of(all_batches, self.labels, description)
        mine = parts.missing()[state.process_index :: state.num_processes]
        options = {"desc": description, "unit": "seed", **_BAR_OPTIONS.get()}
        with tqdm(total=sum(len(all_batches[i]) for i in mine), **options) as bar:
            for index in mine:
                data = measure(all_batches[index]).assign_coords(seed=all_batches[index])
                parts.keep(index, self._without_pictures(data, of_first, {"shown": of_few, "held": of_held}))
                bar.update(len(all_batches[index]))
        return _joined(parts.all(), [*of_first, *of_few, *of_held])

    def _without_pictures(
        self, data: xr.Dataset, of_first: Sequence[str], of_several: Mapping[str, Sequence[str]]
    ) -> xr.Dataset:
        """The numbers of a batch, and of the run's first seeds the pictures."""
        data = data.drop_attrs()
        seeds = data["seed"].values.tolist()
        first = [seed for seed in seeds if seed == self.seeds[0]]
        kept = {name: data[name].sel(seed=first[0], drop=True) for name in of_first if first and name in data}
        for dim, names in of_several.items():
            some = [seed for seed in seeds if seed in self.seeds[: _LIMITS[dim]]]
            kept |= {name: data[name].sel(seed=some).rename(seed=dim) for name in names if some and name in data}
        pictures = [*of_first, *chain.from_iterable(of_several.values())]
        return data.drop_vars(pictures, errors="ignore").assign(kept)


def batches(seeds: Sequence[int], size: int) -> list[list[int]]:
    """The seeds in batches of `size`, the last one being what is left."""
    return [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]


def _joined(parts: Sequence[xr.Dataset], pictures: Sequence[str]) -> xr.Dataset:
    """All batches as one, the pictures of those that have some."""
    numbers = [part.drop_vars(pictures, errors="ignore").drop_dims(_LIMITS, errors="ignore") for part in parts]
    data = xr.concat(numbers, "seed", data_vars="minimal")
    for name in pictures:
        found = [part[name] for part in parts if name in part]
        if found:
            several = [dim for dim in _LIMITS if dim in found[0].dims]
            data[name] = xr.concat(found, several[0]) if several else found[0]
    return data


def generators(seeds: Sequence[int], copies: int = 1) -> list[torch.Generator]:
    """A generator for each image: all seeds in turn, `copies` times over."""
    return [torch.Generator().manual_seed(seed) for _ in range(copies) for seed in seeds]


def arguments_of(pipe: DiffusionPipeline, sampling: Sampling) -> dict[str, Any]:
    """What the call of any pipeline takes of a sampling."""
    values = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance_scale}
    return {name: value for name, value in values.items() if name in inspect.signature(pipe.__call__).parameters}


def check_takes_prompt(experiment: str, pipe: DiffusionPipeline, arguments: Mapping[str, Any]) -> None:
    """Refuses a pipeline that cannot be given other words: without a prompt, or with nothing that encodes one.

    And a call without an argument that the pipeline needs besides.

    Raises:
        ValueError: Which says what is missing.
    """
    name, parameters = type(pipe).__name__, inspect.signature(pipe.__call__).parameters
    if "prompt" not in parameters:
        raise ValueError(f"{experiment}: expected a pipeline that takes a `prompt`, got {name}.")
    embedded = [key for key, value in arguments.items() if key.startswith("prompt_embeds") and value is not None]
    if embedded:
        raise ValueError(f"{experiment}: expected a prompt as text, which can be changed, got {', '.join(embedded)}.")
    for kind in ("tokenizer", "text_encoder"):
        parts = {key: part for key, part in pipe.components.items() if key.startswith(kind)}
        if parts and all(part is None for part in parts.values()):
            raise ValueError(f"{experiment}: expected a pipeline with a {kind}, got {name}, where it is None.")
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name not in ("prompt", *arguments)
    ]
    if needed:
        raise ValueError(
            f"{experiment}: expected `arguments` with {', '.join(needed)}, which {name} needs, got"
            f" {', '.join(arguments) or 'none'}."
        )


def timestep_at(pipe: XAIPipeline, share: float) -> float:
    """A timestep as a share of the training's, in [0, 1]; 0.2 is the thesis's t = 200."""
    return share * pipe.scheduler.config.get("num_train_timesteps", 1000)
