"""What a recording will cost, known before it starts."""

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
from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps.probe import probe_outputs


_HEADER = ("object", "array", "steps", "shape at a step", "size", "backward passes", "time")


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
    specs: Sequence[RecordSpec],
    edits: Iterable[tuple[Any, Sequence[int] | None]],
    context: PlanContext,
    forward_seconds: float,
    backward_seconds: float,
) -> RecordingPlan:
    """The plan of a run.

    Args:
        specs (sequence of `RecordSpec`): What is recorded.
        edits (iterable of `tuple[EditSpec, list[int] or None]`): What is changed, in which images.
        context (`PlanContext`): The run.
        forward_seconds (`float`): Duration of a forward pass of one row.
        backward_seconds (`float`): Duration of a backward pass of one row.
    """
    rows = context.samples * context.branches
    entries = []
    for spec in specs:
        arrays = tuple(spec.plan(context))
        passes = sum(array.backward_passes for array in arrays)
        forwards = len(context.steps(spec)) if passes else 0
        seconds = rows * (passes * backward_seconds + forwards * forward_seconds)
        entries.append(PlanEntry(_title(spec), arrays, seconds))
    for edit, samples in edits:
        place = "" if samples is None else f" in image {', '.join(map(str, samples))}"
        entries.append(PlanEntry(_title(edit) + place, (), 0.0))
    steps = len(context.timesteps)
    return RecordingPlan(tuple(entries), steps, context.samples, steps * rows * forward_seconds)


def context_of(run: Run) -> PlanContext:
    """The context of a run that is at its first denoiser call. Runs the network once, beside the run."""
    args, kwargs = run.calls[-1]
    sample = run.model_input
    denoiser = run.denoiser.module
    devices = [sample.device] if sample.device.type == "cuda" else []
    with run.replaying(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        outputs = probe_outputs(run.denoiser.layers, lambda: denoiser(*args, **kwargs))
    # An inpainting network receives more than the scheduler's state, one with a learned variance puts out more.
    channels = min(sample.shape[1], denoiser.config.get("out_channels", sample.shape[1]))
    return PlanContext(
        denoiser=run.denoiser,
        timesteps=run.timesteps,
        num_train_timesteps=run.scheduler.config.get("num_train_timesteps", 1000),
        samples=run.num_samples,
        branches=len(run.branches),
        sample_shape=(channels, *run.sample_size),
        dtype=sample.dtype,
        outputs=outputs,
    )


def check_size(specs: Sequence[RecordSpec], context: PlanContext, max_bytes: int) -> None:
    """Refuses a profile that would be too large.

    Raises:
        ValueError: if it would take more than `max_bytes`; names the largest arrays and the `every` that would fit.
    """

    def arrays(every: int) -> list[PlannedArray]:
        return [array for spec in specs for array in _thinned(spec, every).plan(context)]

    planned = arrays(1)
    if total_bytes(planned) <= max_bytes:
        return
    largest = sorted(planned, key=lambda array: array.nbytes, reverse=True)[:3]
    strides = range(1, len(context.timesteps) + 1)
    fitting = bisect_left(strides, True, key=lambda every: total_bytes(arrays(every)) <= max_bytes)
    raise ValueError(
        f"The profile would take {format_size(total_bytes(planned))}, more than max_bytes={max_bytes}"
        f" ({format_size(max_bytes)}). The largest: "
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


def _thinned(spec: RecordSpec, every: int) -> RecordSpec:
    """The spec with a stride of at least `every`; unchanged if it names its steps."""
    if spec.steps is not None or spec.timesteps is not None:
        return spec
    return replace(spec, every=max(every, spec.every or 1))


def _title(spec: Any) -> str:
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
