"""One sampling run as it happens: the clock that all explainers and interventions read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from diffusers_xai.taps.modules import tap_call
from diffusers_xai.taps.scheduler import SchedulerStep, noise_level, tap_step


def sample_name(kwargs: dict) -> str:
    """The keyword under which a denoiser receives its sample."""
    return "sample" if "sample" in kwargs else "hidden_states"


def sample_argument(call: tuple[tuple, dict]) -> torch.Tensor:
    """The sample tensor (batch, channel, height, width) among the arguments of a denoiser call."""
    args, kwargs = call
    return args[0] if args else kwargs[sample_name(kwargs)]


class Run:
    """The live state of one run of a pipeline.

    A step is one denoiser call together with the `scheduler.step` that follows it; a pipeline that calls the denoiser
    once per guidance branch has several calls in a step.

    Attributes:
        denoiser: The denoiser's adapter.
        scheduler: The pipeline's scheduler.
        step (`int`): 0-based index of the current step.
        timesteps (`list[float]`): All timesteps of the run; empty until the first denoiser call.
        calls (`list[tuple[tuple, dict]]`): Arguments of the denoiser calls of the current step.
        is_replaying (`bool`): Whether a step is being evaluated once more, beside the run.
        is_guided: Tells whether the pipeline stacks guidance branches along the denoiser's batch.
    """

    def __init__(self, denoiser: Any, scheduler: Any, is_guided: Callable[[], bool] = lambda: False):
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.is_guided = is_guided
        self.step = 0
        self.timesteps: list[float] = []
        self.calls: list[tuple[tuple, dict]] = []
        self.is_replaying = False
        self._on_start: list[Callable[[], None]] = []
        self._on_call: list[tuple[int, Callable[[tuple, dict], tuple[tuple, dict] | None]]] = []
        self._on_step: list[Callable[[SchedulerStep], None]] = []

    def on_start(self, callback: Callable[[], None]) -> None:
        """Calls `callback` before the first denoiser call, when the timesteps are known: the place to refuse."""
        self._on_start.append(callback)

    def on_call(self, callback: Callable[[tuple, dict], tuple[tuple, dict] | None], order: int = 0) -> None:
        """Calls `callback(args, kwargs)` before every denoiser call; what it returns replaces the arguments.

        Callbacks of a higher `order` come later, and so have the last word.
        """
        self._on_call.append((order, callback))
        self._on_call.sort(key=lambda entry: entry[0])

    def on_step(self, callback: Callable[[SchedulerStep], None]) -> None:
        """Calls `callback` at the end of every step."""
        self._on_step.append(callback)

    @property
    def timestep(self) -> float:
        """The scheduler's t of the current step."""
        return self.timesteps[self.step]

    @property
    def sigma(self) -> float:
        """The noise level of the current step, see `noise_level`."""
        return noise_level(self.scheduler, self.timestep)

    @property
    def is_complete(self) -> bool:
        """Whether every step of the schedule has been done."""
        return bool(self.timesteps) and self.step == len(self.timesteps)

    @property
    def model_input(self) -> torch.Tensor:
        """The sample tensor (batch, channel, height, width) that the denoiser last received."""
        return sample_argument(self.calls[-1])

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the denoiser's input."""
        height, width = self.model_input.shape[-2:]
        return height, width

    @property
    def branches(self) -> tuple[str, ...]:
        """The guidance branches in a batch of the denoiser, in their order; without guidance only `"cond"`."""
        return self.denoiser.branches if self.is_guided() else ("cond",)

    @property
    def num_samples(self) -> int:
        """Number of images: a batch of the denoiser holds each of them once per guidance branch."""
        return self.model_input.shape[0] // len(self.branches)

    def rows(self, batch: int) -> list[tuple[str, int]]:
        """Guidance branch and image of every row of a batch: of the denoiser's, or of one that repeats the images.

        Raises:
            ValueError: if `batch` rows do not hold every image equally often.
        """
        branches, samples = self.branches, self.num_samples
        if batch % (len(branches) * samples):
            raise ValueError(f"Expected a batch of {samples} images in {len(branches)} branches, got {batch} rows.")
        return [(branches[row * len(branches) // batch], row % samples) for row in range(batch)]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reads the pipeline's denoiser calls and scheduler steps while the context is open."""
        with ExitStack() as stack:
            stack.enter_context(tap_call(self.denoiser.module, self._before_call))
            stack.enter_context(tap_step(self.scheduler, self._after_step))
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Denoiser calls inside the context are no part of the run: nothing is recorded of them."""
        self.is_replaying = True
        try:
            yield
        finally:
            self.is_replaying = False

    def _before_call(self, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.is_replaying:
            return None
        if self.is_complete:
            raise RuntimeError(
                f"All {len(self.timesteps)} steps of the recorded run are done, and the pipeline was called again:"
                " one recording holds one run. Open a new `record(…)` for the next."
            )
        self.calls.append((args, kwargs))
        if not self.timesteps:
            self._start()
        for _, edit in self._on_call:
            args, kwargs = edit(args, kwargs) or (args, kwargs)
        self.calls[-1] = (args, kwargs)
        return args, kwargs

    def rehearse(self, *args: Any, **kwargs: Any) -> None:
        """Lets everything that is attached refuse a run that would begin with this denoiser call."""
        self.calls = [(args, kwargs)]
        self._start()

    def _start(self) -> None:
        args, kwargs = self.calls[0]
        timesteps = [float(t) for t in self.scheduler.timesteps]
        given = args[1] if len(args) > 1 else kwargs.get("timestep")
        first = None if given is None else float(torch.as_tensor(given).reshape(-1)[0])
        # An image-to-image pipeline starts in the middle of the schedule.
        self.timesteps = timesteps[timesteps.index(first) :] if first in timesteps else timesteps
        for callback in self._on_start:
            callback()

    def _after_step(self, step: SchedulerStep) -> None:
        if not self.calls:
            raise RuntimeError(
                "`scheduler.step` was called without a call of the recorded denoiser: the pipeline uses another one."
            )
        for callback in self._on_step:
            callback(step)
        self.calls.clear()
        self.step += 1
