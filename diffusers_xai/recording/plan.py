"""What a recording will cost, known before its first step is done."""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from html import escape
from typing import Any

import numpy as np
import torch

from diffusers_xai.profile.repr import format_size
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.steps import StepSpec


_HEADER = ("object", "array", "steps", "shape at a step", "size", "backward passes", "time")


def recorded_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor is recorded: its own, but float32 for bfloat16, which numpy does not have."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


@dataclass(frozen=True)
class PlannedArray:
    """An array of the coming profile.

    Attributes:
        name (`str`): Its name in the profile.
        steps (`frozenset[int]` or `None`): The recorded steps; `None` for an array without the dim `step`.
        shape (`tuple[int, ...]`): Its shape at one step: (sample, [branch,] …); before `of`, behind those two.
        dtype (`torch.dtype`): Its dtype in the profile.
        per_branch (`bool`): Whether each guidance branch has its own.
        backward_passes (`int`): How many backward passes it takes in all, each of every row of the denoiser's batch.
    """

    name: str
    steps: frozenset[int] | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    per_branch: bool = True
    backward_passes: int = 0

    @property
    def nbytes(self) -> int:
        """Its size in the profile."""
        return (1 if self.steps is None else len(self.steps)) * math.prod(self.shape) * self.dtype.itemsize

    def of(self, samples: int, branches: int) -> "PlannedArray":
        """The array with the dims of images and guidance branches."""
        rows = (samples, branches) if self.per_branch and branches > 1 else (samples,)
        return replace(self, shape=(*rows, *self.shape))


@dataclass(frozen=True)
class PlanEntry:
    """A spec, or an edit, and what it costs.

    Attributes:
        title (`str`): The spec in short.
        arrays (`tuple[PlannedArray, ...]`): What it records; nothing for an edit.
        seconds (`float`): What its backward passes and the forward passes before them will take, estimated.
    """

    title: str
    arrays: tuple[PlannedArray, ...]
    seconds: float

    @property
    def backward_passes(self) -> int:
        """How many backward passes it takes, of every row of the denoiser's batch."""
        return sum(array.backward_passes for array in self.arrays)


@dataclass(frozen=True)
class RecordingPlan:
    """The size of a coming profile, exactly, and an estimate of the time that sampling it takes. Prints as a table.

    Attributes:
        entries (`tuple[PlanEntry, ...]`): What is recorded and changed.
        steps (`int`): Number of denoising steps.
        samples (`int`): Number of images.
        sampling_seconds (`float`): Estimated time of sampling alone, from one forward pass of one image.
    """

    entries: tuple[PlanEntry, ...]
    steps: int
    samples: int
    sampling_seconds: float

    @property
    def nbytes(self) -> int:
        """Size of the profile's arrays; what two specs record alike is stored once."""
        return total_bytes(itertools.chain.from_iterable(entry.arrays for entry in self.entries))

    @property
    def backward_passes(self) -> int:
        """Backward passes in all, of every row of the denoiser's batch."""
        return sum(entry.backward_passes for entry in self.entries)

    @property
    def seconds(self) -> float:
        """Estimated time of the whole run."""
        return self.sampling_seconds + sum(entry.seconds for entry in self.entries)

    def __str__(self) -> str:
        rows = [_HEADER, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([f"RecordingPlan: {self._headline()}", *lines])

    def _repr_html_(self) -> str:
        def cells(tag: str, row: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag} style='text-align:left'>{escape(text)}</{tag}>" for text in row) + "</tr>"

        body = "".join(cells("td", row) for row in self._rows())
        return (
            f"<div><b>RecordingPlan</b> {escape(self._headline())}"
            f"<table><thead>{cells('th', _HEADER)}</thead><tbody>{body}</tbody></table></div>"
        )

    def _headline(self) -> str:
        images = "1 image" if self.samples == 1 else f"{self.samples} images"
        return f"{images}, {self.steps} steps; {format_size(self.nbytes)}, about {_duration(self.seconds)}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows = []
        for entry in self.entries:
            duration = _duration(entry.seconds) if entry.seconds else ""
            if not entry.arrays:
                rows.append((entry.title, *[""] * 6))
            for i, array in enumerate(entry.arrays):
                steps = "" if array.steps is None else str(len(array.steps))
                passes = str(array.backward_passes) if array.backward_passes else ""
                title, time = (entry.title, duration) if i == 0 else ("", "")
                shape = " × ".join(map(str, array.shape))
                rows.append((title, array.name, steps, shape, format_size(array.nbytes), passes, time))
        passes = str(self.backward_passes) if self.backward_passes else ""
        rows.append(("sampling itself", "", str(self.steps), "", "", "", _duration(self.sampling_seconds)))
        rows.append(("in all", "", "", "", format_size(self.nbytes), passes, _duration(self.seconds)))
        return rows


def make_plan(
    arrays: Sequence[tuple[StepSpec, Sequence[PlannedArray]]],
    edits: Iterable[tuple[Any, Sequence[int] | None]],
    run: Run,
    step_seconds: float,
    backward_seconds: float,
) -> RecordingPlan:
    """The plan of a run that has shown its first denoiser calls.

    Args:
        arrays (sequence of `tuple[StepSpec, sequence of PlannedArray]`): What is recorded, with all dims.
        edits (iterable of `tuple[EditSpec, list[int] or None]`): What is changed, in which images.
        run (`Run`): The run.
        step_seconds (`float`): Duration of the denoiser calls of a step.
        backward_seconds (`float`): Duration of a backward pass of all rows.
    """
    entries = []
    for spec, planned in arrays:
        passes = sum(array.backward_passes for array in planned)
        forwards = max((len(array.steps or ()) for array in planned), default=0) if passes else 0
        entries.append(PlanEntry(_title(spec), tuple(planned), passes * backward_seconds + forwards * step_seconds))
    for edit, samples in edits:
        place = "" if samples is None else f" in image {', '.join(map(str, samples))}"
        entries.append(PlanEntry(_title(edit) + place, (), 0.0))
    steps = len(run.timesteps)
    return RecordingPlan(tuple(entries), steps, run.num_samples, steps * step_seconds)


def check_size(arrays: Sequence[tuple[StepSpec, PlannedArray]], run: Run, max_bytes: int) -> None:
    """Refuses a profile that would be too large.

    Raises:
        ValueError: if it would take more than `max_bytes`; names the largest arrays and the `every` that would fit.
    """
    planned = [array for _, array in arrays]
    if total_bytes(planned) <= max_bytes:
        return

    def thinned(every: int) -> list[PlannedArray]:
        return [_thinned(spec, array, every, run) for spec, array in arrays]

    largest = sorted(planned, key=lambda array: array.nbytes, reverse=True)[:3]
    strides = range(1, len(run.timesteps) + 1)
    fitting = bisect_left(strides, True, key=lambda every: total_bytes(thinned(every)) <= max_bytes)
    raise ValueError(
        f"Expected a profile of at most max_bytes={max_bytes} ({format_size(max_bytes)}), got"
        f" {format_size(total_bytes(planned))}. The largest: "
        + ", ".join(f"{array.name} {format_size(array.nbytes)}" for array in largest)
        + (f". `every={strides[fitting]}` would fit." if fitting < len(strides) else ". Record fewer steps or layers.")
    )


def total_bytes(arrays: Iterable[PlannedArray]) -> int:
    """Size of arrays in one profile, where those of one name are one array."""
    by_name: dict[str, PlannedArray] = {}
    for array in arrays:
        before = by_name.get(array.name)
        if before is not None and before.steps is not None and array.steps is not None:
            array = replace(array, steps=before.steps | array.steps)
        by_name[array.name] = array
    return sum(array.nbytes for array in by_name.values())


def _thinned(spec: StepSpec, array: PlannedArray, every: int, run: Run) -> PlannedArray:
    """The array with a stride of at least `every`; unchanged if the spec names its steps, or it holds every step."""
    named = spec.steps is not None or spec.timesteps is not None
    if named or array.steps != spec.select_steps(run.timesteps, run.num_train_timesteps):
        return array
    return replace(array, steps=frozenset(range(0, len(run.timesteps), max(every, spec.every or 1))))


def _title(spec: StepSpec) -> str:
    """The spec as it would be written, without defaults and without the contents of arrays."""

    def text(value: Any) -> str:
        written = "…" if isinstance(value, (np.ndarray, torch.Tensor, Mapping)) else repr(value)
        return written if len(written) <= 40 else written[:39] + "…"

    given = [
        f"{field.name}={text(value)}"
        for field in fields(spec)
        if (value := getattr(spec, field.name)) is not field.default or field.default is MISSING
    ]
    return f"{type(spec).__name__}({', '.join(given)})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
