"""What a visitor can have computed, one run of a model at a time: it tells how far it is, and can be ended."""

import gc
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.memory import give_back
from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import Limits, Settings, SettingsError
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.passed import Pipeline
from diffusers_xai.recording.plan import RecordingPlan


CANCELLED = "Cancelled: nothing was changed."
# Tells how far a task is: what is done, out of how much, and a sample (channel, height, width).
Tell = Callable[[int, int, torch.Tensor], None]
SWEEP_SEEDS, SWEEP_SWITCHES = 3, 10


class Stopped(SettingsError):
    """A run that was cancelled or took too long."""


class Stop(Protocol):
    """Tells whether a run is still wanted; a `threading.Event` does."""

    def is_set(self) -> bool:
        """Whether to end it."""


class SharedModel(Protocol):
    """What all visitors share, one run at a time."""

    @property
    def pipe(self) -> Any:
        """The pipeline, whose network is its `unet`."""

    @property
    def lock(self) -> threading.Lock:
        """Held by the current run."""

    @property
    def threads(self) -> int:
        """CPU threads of a run."""


@dataclass(frozen=True)
class State:
    """A run in progress: how many of its steps are done, and its sample (channel, height, width)."""

    done: int
    total: int
    sample: np.ndarray


def plan(model: Model, settings: Settings, limits: Limits, tell: Tell) -> RecordingPlan:
    """What the run would cost."""
    specs = settings.specs(limits, model.has_attention)
    with model.scheduled(settings.scheduler):
        return model.pipe.plan(
            specs, settings.edits(), num_inference_steps=settings.steps, guidance_scale=settings.guidance
        )


def sample(model: Model, settings: Settings, limits: Limits, tell: Tell) -> DiffusionProfile:
    """One image, recorded."""
    with model.scheduled(settings.scheduler):
        output: Any = model.pipe(
            class_labels=settings.label,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(settings.seed),
            record=settings.specs(limits, model.has_attention),
            edits=settings.edits(),
            max_bytes=limits.max_bytes,
            callback_on_step_end=_each_step(tell),
            output_type="pt",
        )
    profile = output.profile
    profile.provenance.update(without_paths(profile.provenance, model.name))
    return profile


def _each_step(tell: Tell) -> Callable[..., dict]:
    def on_step_end(pipe: Pipeline, step: int, timestep: Any, tensors: dict) -> dict:
        tell(step + 1, len(pipe.scheduler.timesteps), tensors["sample"][0])
        return {}

    return on_step_end


def without_paths(value: Any, name: str) -> Any:
    """Facts without the places of this server's files: where one stood, the model's name stands."""
    if isinstance(value, dict):
        return {key: without_paths(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, name) for item in value]
    return name if isinstance(value, str) and Path(value).is_absolute() else value


def sweep(model: Model, settings: Settings, limits: Limits, tell: Tell) -> ExperimentResult:
    """The label switched at ten times, for three seeds."""
    if settings.label is None:
        raise SettingsError(f"Expected a model with labels to switch between, got {model.name}.")
    seeds = range(settings.seed, settings.seed + SWEEP_SEEDS)
    return EXPERIMENTS["predetermination"].run(
        model.pipe,
        Sampling(labels=[settings.label, settings.switch_to], seeds=seeds, steps=settings.steps),
        switches=min(SWEEP_SWITCHES, settings.steps),
        null="none",  # whose samples would take longer than the sweep
        callback_on_step_end=_each_step(tell),
    )


def sweep_seconds(plan: RecordingPlan) -> float:
    """How long the sweep takes at most, by the plan of one of its runs; a switched run is done from its switch on."""
    runs = 1 + sum(1 - i / SWEEP_SWITCHES for i in range(SWEEP_SWITCHES))
    return SWEEP_SEEDS * runs * plan.sampling_seconds


def run_stream(
    task: Callable[..., Any],
    model: SharedModel,
    settings: Any,
    limits: Limits,
    stop: Stop | None = None,
    patience: float = math.inf,
) -> Iterator[Any]:
    """Does a task such as `plan` or `sample` after the model's other runs; yields `State`s, and at last the result.

    Raises:
        Stopped: If `stop` was set, the time is over, or the model was busy for `patience` seconds; the text says
            which.
    """
    states: queue.Queue = queue.Queue()
    abandoned = threading.Event()

    def end_if_cancelled() -> None:
        if abandoned.is_set() or (stop is not None and stop.is_set()):
            raise Stopped(CANCELLED)

    def work() -> Any:
        deadline = time.monotonic() + limits.max_seconds

        def end_if_over(*call: Any) -> None:
            end_if_cancelled()
            if time.monotonic() > deadline:
                raise Stopped(f"Stopped after {limits.max_seconds:.0f} s, the limit of this server. Ask for less.")

        def tell(done: int, total: int, seen: torch.Tensor) -> None:
            states.put(State(done, total, seen.detach().float().cpu().numpy()))

        torch.set_num_threads(model.threads)
        hook = model.pipe.unet.register_forward_pre_hook(end_if_over)  # between steps is not often enough
        try:
            return task(model, settings, limits, tell)
        finally:
            hook.remove()

    def work_in_turn() -> None:
        try:
            start = time.monotonic()
            while not model.lock.acquire(timeout=0.2):
                end_if_cancelled()
                if time.monotonic() - start > patience:
                    raise Stopped("The model is busy with another run: ask again in a moment.")
            try:
                end_if_cancelled()
                result = work()
            finally:
                model.lock.release()
            states.put(result)
        except BaseException as error:
            states.put(error)

    threading.Thread(target=work_in_turn, daemon=True).start()
    try:
        while True:
            item = states.get()
            while not states.empty() and isinstance(item, State):
                item = states.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if not isinstance(item, State):
                return
            time.sleep(0.15)
    finally:
        abandoned.set()
        gc.collect()  # a run's objects refer to each other: earlier profiles would stay for a while
        give_back()
