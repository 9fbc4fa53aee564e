"""record(): attaches explainers and interventions to a pipeline for one run."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers_xai.denoisers import get_denoiser
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import Edits, check_samples, edits_with_samples
from diffusers_xai.recording.plan import check_size, context_of
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.recording.stores import DiskStore, MemoryStore
from diffusers_xai.taps import force_eager


@contextmanager
def record(
    pipeline: Any,
    specs: Sequence[RecordSpec] = (),
    edits: Edits = (),
    profile_dir: str | os.PathLike | None = None,
    max_bytes: int | None = None,
) -> Iterator[Recording]:
    """Records, and changes, the one run of `pipeline` that is made inside the context.

    Without `edits` the images are bit-identical to those of an unrecorded run, and when the context is left, also by
    an exception, nothing stays attached. After an exception `profile` holds the steps done, marked `complete: false`.

    ```py
    with record(pipe, [Samples(every=10), AttentionOutputs()]) as run:
        pipe("a red fox")
    run.profile
    ```

    Args:
        pipeline (`DiffusionPipeline`): A pipeline of a known family (see `denoisers`), with any scheduler.
        specs (sequence of `RecordSpec`): What to record; what is recorded has the edits in it.
        edits (sequence of `EditSpec`, or one sequence of them per image): What to change: in all images, or in each
            image of the batch something else.
        profile_dir (`str` or `os.PathLike`, *optional*): A new folder that the profile is written to while sampling,
            so that memory does not grow with the number of steps. From the first step on it can be opened at any time
            with `DiffusionProfile.from_pretrained`, marked `complete: false` until the run has ended.
        max_bytes (`int`, *optional*): Refuses, before the first step, a profile that would be larger. To know its
            size, the network is run once beforehand.

    Yields:
        `Recording`: its `profile` is set when the context is left.

    Raises:
        TypeError: if the pipeline's family is not known, or a spec is not one.
        KeyError, ValueError: for a request that matches nothing (before the first denoiser call).
        ValueError: if the profile would exceed `max_bytes`, with what would fit (before the first step).
        FileExistsError: if there is something at `profile_dir`.
        OSError: if writing there fails; what was written before stays readable.
        RuntimeError: if a cache is enabled on the denoiser, if a requested layer does not run, or if the context does
            not hold exactly one run.
    """
    specs = list(specs)
    for spec in specs:
        if not isinstance(spec, RecordSpec):
            raise TypeError(f"Expected what to record, such as `Samples(every=10)`, got {spec!r}.")
    edits_of_samples = edits_with_samples(edits)
    denoiser = get_denoiser(pipeline)
    if getattr(denoiser.module, "is_cache_enabled", False):
        raise RuntimeError(
            "A cache is enabled on the denoiser: layers of skipped steps would be recorded stale. Call"
            " `disable_cache()` before recording."
        )
    run = Run(denoiser, pipeline.scheduler, lambda: getattr(pipeline, "do_classifier_free_guidance", False))
    store = MemoryStore() if profile_dir is None else DiskStore(profile_dir)
    recording = Recording(run, specs, pipeline, edits, store)
    with ExitStack() as stack:
        stack.enter_context(force_eager(denoiser.pipeline_module))
        stack.enter_context(run.attached())
        run.on_start(lambda: check_samples(edits, run.num_samples))
        for edit, samples in edits_of_samples:  # first, so that what is recorded has the edits in it
            edit.attach(run, stack, samples)
        for spec in specs:
            spec.attach(recording, stack)
        if max_bytes is not None:
            run.on_start(lambda: check_size(specs, context_of(run), max_bytes))
        run.on_step(recording.finish_step)
        try:
            yield recording
        finally:
            recording.finish()
    if run.step == 0:
        raise RuntimeError(
            "Nothing was sampled inside `record(…)`: expected one call of the pipeline that was passed to it."
        )
