"""record(): attaches explainers and interventions to a pipeline for one run; plan(): tells what that would cost."""

import os
import weakref
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.passed import Pipeline
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import Edits, check_samples, edits_with_samples
from diffusers_xai.recording.plan import RecordingPlan, make_plan
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.replay import seconds_of_a_backward_pass, seconds_of_a_step
from diffusers_xai.recording.shadow import shadow_arguments, shadow_of
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.recording.stores import DiskStore, MemoryStore, free_bytes
from diffusers_xai.taps import SchedulerStep, cache_of, force_eager


class _RecordContext(AbstractContextManager[Recording]):
    """A recording that ends when it is dropped too, at the latest before the interpreter falls apart.

    Args:
        generator (iterator of [`Recording`]): Yields the recording, and ends it.
    """

    def __init__(self, generator: Generator[Recording, None, None]):
        self._generator = generator
        self._context = contextmanager(lambda: generator)()

    def __enter__(self) -> Recording:
        recording = self._context.__enter__()
        self._dropped = weakref.finalize(self, self._generator.close)
        return recording

    def __exit__(self, *error: Any) -> bool | None:
        self._dropped.detach()
        return self._context.__exit__(*error)


def record(
    pipeline: Pipeline,
    specs: Sequence[RecordSpec] = (),
    edits: Edits = (),
    profile_dir: str | os.PathLike | None = None,
    max_bytes: int | None = None,
    denoiser: str | Sequence[str] | None = None,
) -> AbstractContextManager[Recording]:
    """Records, and changes, the one run of `pipeline` that is made inside the context.

    Without `edits` the images are bit-identical to those of an unrecorded run, and when the context is left, also by
    an exception, nothing stays attached. After an exception `profile` holds the steps done, marked `complete: false`.
    A context that is dropped without being left ends by itself.

    ```py
    with record(pipe, [Samples(every=10), AttentionOutputs()]) as recording:
        pipe("a red fox")
    recording.profile
    ```

    Args:
        pipeline (`DiffusionPipeline`): Any pipeline: one that calls a network and then `scheduler.step` in a loop.
        specs (sequence of `RecordSpec`): What to record; what is recorded has the edits in it.
        edits (sequence of `EditSpec`, or one sequence of them per image): What to change: in all images, or in each
            image of the batch something else.
        profile_dir (`str` or `os.PathLike`, *optional*): A new folder that the profile is written to while sampling,
            so that memory does not grow with the number of steps. From the first step on it can be opened at any time
            with `DiffusionProfile.from_pretrained`, marked `complete: false` until the run has ended.
        max_bytes (`int`, *optional*): Refuses, before the first step, a profile that would be larger. If `None`: what
            fits into free memory, or onto the disk.
        denoiser (`str` or sequence of `str`, *optional*): Name of the component that denoises, or of several that are
            recorded; found by itself in every pipeline of diffusers.

    Returns:
        A context manager that gives a `Recording`; its `profile` is set when the context is left.

    Raises:
        TypeError: if no network can be found, or a spec is not one.
        KeyError, ValueError: for a request that matches nothing (before the first denoiser call).
        ValueError: if the profile would exceed `max_bytes`, with what would fit (before the first step).
        FileExistsError: if there is something at `profile_dir`.
        OSError: if writing there fails; what was written before stays readable.
        RuntimeError: if the network or the scheduler is being recorded already; if a cache is enabled on the denoiser,
            if a requested layer does not run, or if the context does not hold exactly one run.
    """
    return _RecordContext(_recording(pipeline, specs, edits, profile_dir, max_bytes, denoiser))


def _recording(
    pipeline: Pipeline,
    specs: Sequence[RecordSpec],
    edits: Edits,
    profile_dir: str | os.PathLike | None,
    max_bytes: int | None,
    denoiser: str | Sequence[str] | None,
) -> Generator[Recording, None, None]:
    run, specs = _prepare(pipeline, specs, denoiser)
    with ExitStack() as stack:
        stack.enter_context(run.attached())
        store = MemoryStore() if profile_dir is None else DiskStore(profile_dir)
        stack.callback(store.close)
        limit = free_bytes(profile_dir) if max_bytes is None else max_bytes
        recording = Recording(run, specs, edits, store, limit)
        _attach(recording, specs, edits, stack)
        run.before_step(recording.check_size)
        run.on_step(recording.finish_step)
        try:
            yield recording
        except BaseException as error:
            for finish in (run.end, recording.finish):
                try:
                    finish()
                except Exception as late:  # whoever looks for the cause needs the first one
                    error.add_note(f"The recording could not be ended either: {type(late).__name__}: {late}")
            raise
        try:
            run.end()
        finally:
            recording.finish()
    if run.step == 0 and run.calls:
        raise RuntimeError(
            f"{run.denoiser.name} was called, and `scheduler.step` was not: expected a pipeline that steps its own"
            f" scheduler, got {type(pipeline).__name__}, which may step copies of it."
        )
    if run.step == 0:
        raise RuntimeError(
            "Nothing was sampled inside `record(…)`: expected one call of the pipeline that was passed to it."
        )
    recording.check_all_happened()


class _Planned(BaseException):
    """Leaves a pipeline's call when its first denoiser calls have been seen."""


def plan(
    pipeline: Pipeline,
    specs: Sequence[RecordSpec] = (),
    edits: Edits = (),
    denoiser: str | Sequence[str] | None = None,
    **arguments: Any,
) -> RecordingPlan:
    """Tells what a recording would cost, without sampling: `print(plan(pipe, [Samples()], prompt="a red fox"))`.

    The pipeline is called on a copy of itself, with the same networks, up to the end of its first denoiser call.

    Args:
        pipeline (`DiffusionPipeline`): Any pipeline.
        specs (sequence of `RecordSpec`): What would be recorded.
        edits (sequence of `EditSpec`, or one sequence of them per image): What would be changed.
        denoiser (`str` or sequence of `str`, *optional*): See [`record`].
        **arguments: Those of the pipeline's call.

    Returns:
        [`RecordingPlan`]: The size of every array, exactly, and estimates of time; prints as a table.

    Raises:
        TypeError, KeyError, ValueError, RuntimeError: as a run with these arguments would.
    """
    with ExitStack() as stack:
        shadow = stack.enter_context(shadow_of(pipeline))
        run, specs = _prepare(shadow, specs, denoiser)
        edits_of_samples = edits_with_samples(edits)
        recording = Recording(run, specs, edits, MemoryStore())
        seconds = {"step": 0.0, "backward": 0.0}

        def stop() -> None:
            seconds["step"] = seconds_of_a_step(run)
            if any(array.backward_passes for arrays in recording.planned.values() for array in arrays.values()):
                seconds["backward"] = seconds_of_a_backward_pass(run)
            raise _Planned

        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(run.attached())
        _attach(recording, specs, edits, stack)
        run.before_step(stop)
        try:
            shadow(**shadow_arguments(arguments))
        except _Planned:
            samples, branches = run.num_samples, len(run.guidance.branches)
            arrays = [
                (spec, [array.of(samples, branches) for array in recording.planned[id(spec)].values()])
                for spec in specs
            ]
            return make_plan(arrays, edits_of_samples, run, seconds["step"], seconds["backward"])
    raise RuntimeError("The pipeline came to its end without a call of `scheduler.step`: there is nothing to record.")


def _prepare(
    pipeline: Pipeline, specs: Sequence[RecordSpec], component: str | Sequence[str] | None
) -> tuple[Run, list[RecordSpec]]:
    """The run that is to be recorded; refuses what can be refused without touching it."""
    specs = list(specs)
    for spec in specs:
        if not isinstance(spec, RecordSpec):
            raise TypeError(f"Expected what to record, such as `Samples(every=10)`, got {spec!r}.")
    denoiser = get_denoiser(pipeline, component)
    if not hasattr(getattr(pipeline, "scheduler", None), "step"):
        raise TypeError(f"Expected a pipeline with a `scheduler`, got {type(pipeline).__name__} without one.")
    for module in denoiser.components.values():
        cache = cache_of(module)
        if cache is not None:
            raise RuntimeError(
                f"A cache is enabled on the denoiser ({cache}): layers of skipped steps would be recorded stale. Call"
                " `disable_cache()`, or remove the hooks that `apply_…` put on it, before recording."
            )
        if isinstance(module, ClosedFormDenoiser):
            module.check_scheduler(pipeline.scheduler)
    return Run(denoiser, pipeline.scheduler, pipeline), specs


def _attach(recording: Recording, specs: Sequence[RecordSpec], edits: Edits, stack: ExitStack) -> None:
    run = recording.run
    for module in run.denoiser.pipeline_modules:
        stack.enter_context(force_eager(module))

    def check_number(step: SchedulerStep) -> None:
        if run.step == 0:  # now it is certain
            check_samples(edits, run.num_samples)

    run.on_start(lambda: check_samples(edits, run.num_samples))
    run.on_step(check_number)
    for edit, samples in edits_with_samples(edits):  # first, so that what is recorded has the edits in it
        edit.attach(run, stack, samples)
    for spec in specs:
        spec.attach(recording, stack)
