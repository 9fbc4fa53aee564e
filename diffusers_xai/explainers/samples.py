"""The samples x_t, the predicted x̂_0 and measures between successive samples."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from diffusers_xai.denoisers.labelling import Labelled
from diffusers_xai.measures import MEASURES
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.recording.states import predicted_part
from diffusers_xai.taps import SchedulerStep, copy_scheduler, scale_model_input, x0_and_noise
from diffusers_xai.taps.noise import as_clipped, check_x0


SSIM_WINDOW = 7


@dataclass(frozen=True, kw_only=True)
class Samples(RecordSpec):
    """Records the scheduler's state x_t and the predicted x̂_0 (thesis fig. 5.3, 5.4, 5.6).

    Arrays: `samples` and `x0` of dims (step, sample, channel, height, width), of videos (…, channel, frame, height,
    width), of sound (…, channel, frame), of sequences of unknown kind (…, channel, token); `final_sample` without
    `step`; and, of images and videos, `measures/ssim` (step, sample): SSIM of a step's x_t and its result, at
    **every** step of the run, the mean over frames. `final_sample` is the state with which the pipeline's loop ends,
    callbacks and blending included. Where that cannot be read (see [`Ending`]), it is left out.

    Args:
        steps, timesteps, every: See [`RecordSpec`].
        x0 (`bool`, defaults to `True`): Record x̂_0 beside x_t: the scheduler's own where it tells or holds it (clipped
            or thresholded, if it does that), else what its kind of prediction implies.
        measures (sequence of `str`, defaults to `("ssim",)`): Measures of samples, by their names in
            `diffusers_xai.measures.MEASURES`, that are taken while sampling; empty for none.

    Raises:
        ValueError: for an unknown measure; before sampling, for samples smaller than SSIM's window of 7 pixels, or a
            scheduler that does not tell what its predictions mean.
    """

    x0: bool = True
    measures: Sequence[str] = ("ssim",)

    def __post_init__(self) -> None:
        super().__post_init__()
        measures = (self.measures,) if isinstance(self.measures, str) else tuple(self.measures)
        available = [name for name, measure in MEASURES.items() if measure.of == "samples"]
        unknown = sorted(set(measures) - set(available))
        if unknown:
            raise ValueError(f"Expected `measures` from {available}, got {unknown}.")
        object.__setattr__(self, "measures", measures)

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps nothing but the scheduler's steps."""
        run = recording.run
        ended: list[Callable[[torch.Tensor], None]] = []
        recording.expect(self, ["samples", "x0"] if self.x0 else ["samples"])

        def measures() -> Sequence[str]:
            return self.measures if len(run.positions) > 1 else ()

        def start() -> None:
            if any(name.startswith("ssim") for name in measures()) and min(run.sample_size) < SSIM_WINDOW:
                raise ValueError(
                    f"SSIM: expected samples of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, got {run.sample_size}."
                    " Record `Samples(measures=())`."
                )
            if self.x0:
                check_x0(run.scheduler, run.timesteps[0])

        def declare() -> None:
            if run.step > 0:
                return
            shape, dtype = run.labelling.sample(run.state).values.shape[1:], run.state.dtype
            for name in ("samples", "x0") if self.x0 else ("samples",):
                recording.declare(self, name, shape, dtype, per_branch=False)
            every_step = frozenset(range(len(run.timesteps)))
            for name in measures():
                recording.declare(self, f"measures/{name}", (), torch.float64, per_branch=False, steps=every_step)
            recording.declare(self, "final_sample", shape, dtype, per_branch=False, steps=frozenset([0]))

        def keep(step: SchedulerStep) -> None:
            label, samples = run.labelling.sample, run.num_samples
            before, after = label(step.sample[:samples]), label(step.result[:samples])
            if recording.is_selected(self):
                recording.keep(self, "samples", before.values, before.dims, per_branch=False)
                if self.x0:
                    recording.keep(self, "x0", label(predicted_x0(run, step)).values, before.dims, per_branch=False)
            for name in measures():
                value = _measure(name, before.values, after.values)
                recording.keep(self, f"measures/{name}", value, (), per_branch=False)
            if run.step == len(run.timesteps) - 1:
                ended.append(partial(finish, label, samples))

        def finish(label: Callable[[torch.Tensor], Labelled], samples: int, state: torch.Tensor) -> None:
            final = label(state[:samples])
            recording.keep_final("final_sample", final.values, final.dims)

        run.on_start(start)
        run.before_step(declare)
        run.on_step(keep)
        run.on_end(lambda state: ended[-1](state))


def predicted_x0(run: Run, step: SchedulerStep) -> torch.Tensor:
    """x̂_0 of a step that is done: the scheduler's own where it tells it, else what the prediction implies."""
    if step.pred_original_sample is not None:
        return step.pred_original_sample
    scheduler = copy_scheduler(run.scheduler)
    if step.index is not None:
        scheduler._step_index = step.index  # it has counted on
    model_input = scale_model_input(scheduler, step.sample, step.arguments["timestep"])
    x0, _ = x0_and_noise(run.scheduler, step.level, predicted_part(step.sample, step.model_output), model_input)
    return as_clipped(run.scheduler, x0)


def _measure(name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A measure (sample) of images (sample, channel, height, width), of videos the mean over their frames."""
    function = MEASURES[name].function
    if before.ndim == 4:
        return function(before, after)
    frames = before.shape[2]
    folded = [video.transpose(1, 2).flatten(0, 1) for video in (before, after)]
    return function(*folded).unflatten(0, (-1, frames)).mean(dim=1)
