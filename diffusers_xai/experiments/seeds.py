"""The same measurement over many seeds: in batches, with progress, and shared by processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from tqdm.auto import tqdm

from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import Edits, RecordSpec


def over_seeds(
    measure: Callable[[list[int]], xr.Dataset], seeds: Sequence[int], *, batch_size: int, description: str
) -> xr.Dataset:
    """Calls `measure` with batches of seeds and joins what it returns along the dim `seed`.

    Under `accelerate launch` the batches are spread over the processes, and every process gets the whole. A seed's
    numbers depend on the batch that it is in at most by rounding, and the batches do not depend on the processes.

    Args:
        measure (`Callable`): Takes seeds, returns a data set with a dim `seed` in the order of the seeds.
        seeds (`Sequence[int]`): All seeds, each once.
        batch_size (`int`): Seeds in a batch.
        description (`str`): What the progress bar says.

    Raises:
        ValueError: If there is no seed, one stands twice, or `batch_size` is below 1.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"expected at least one seed, each once, got {seeds}")
    if batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    state = process_state()
    mine = list(range(state.process_index, len(batches), state.num_processes))
    parts = []
    with tqdm(total=sum(len(batches[i]) for i in mine), desc=description, unit="seed", disable=None) as bar:
        for index in mine:
            parts.append((index, measure(batches[index]).assign_coords(seed=batches[index])))
            bar.update(len(batches[index]))
    if state.num_processes > 1:
        parts = gather_object(parts)
    return xr.concat([part for _, part in sorted(parts, key=lambda pair: pair[0])], "seed", data_vars="minimal")


def of_first_seed(data: xr.Dataset, *names: str) -> xr.Dataset:
    """The same numbers, the variables `names` (pictures, say) being kept of the first seed only."""
    return data.assign({name: data[name].isel(seed=0, drop=True) for name in names})


def profile_of(
    pipe: XAIPipeline,
    labels: Sequence[int],
    seeds: Sequence[int],
    num_inference_steps: int,
    guidance_scale: float,
    record: Sequence[RecordSpec],
    edits: Edits = (),
) -> DiffusionProfile:
    """Samples an image for each seed, of the first of `labels` if there is one, and returns what was recorded."""
    output: Any = pipe(
        class_labels=labels[0] if labels else None,
        batch_size=len(seeds),
        num_inference_steps=num_inference_steps,
        generator=generators(seeds),
        guidance_scale=guidance_scale,
        record=record,
        edits=edits,
        output_type="pt",
    )
    return output.profile


def process_state() -> PartialState:
    """This process among those of `accelerate launch`, on CPUs with `ACCELERATE_USE_CPU=true` in the environment."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def generators(seeds: Sequence[int], copies: int = 1) -> list[torch.Generator]:
    """A generator for each image: all seeds in turn, `copies` times over."""
    return [torch.Generator().manual_seed(seed) for _ in range(copies) for seed in seeds]
