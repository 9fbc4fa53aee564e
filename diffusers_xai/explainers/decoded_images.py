"""The predicted x̂_0 as pictures."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from diffusers_xai.denoisers.labelling import Labelling
from diffusers_xai.explainers.samples import predicted_x0
from diffusers_xai.recording.pictures import picture_decoder
from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.spec import RecordSpec
from diffusers_xai.taps import SchedulerStep
from diffusers_xai.taps.noise import check_x0


@dataclass(frozen=True, kw_only=True)
class DecodedImages(RecordSpec):
    """Records the pictures that the predicted x̂_0 are: decoded by the pipeline's autoencoder where it has one.

    With them a profile of a latent model can be looked at without the model. Every recorded step takes one more
    decoding of each image, as the pipeline does at its end, one image at a time; the size of the pictures is found by
    decoding the first state. Arrays: `images` of dims (step, sample, channel, [frame,] height, width), in bytes from 0
    to 255, and `final_image` of the last state, without `step`, see [`Samples`].

    Args:
        steps, timesteps, every: See [`RecordSpec`].

    Raises:
        ValueError: before the first step ends, if the pipeline's samples are no pictures, if how they are decoded is
            not known, or if the scheduler does not tell what its predictions mean.
    """

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Taps nothing but the scheduler's steps."""
        run = recording.run
        recording.expect(self, ["images"])
        ended: list[Callable[[torch.Tensor], None]] = []

        def decode(state: torch.Tensor) -> torch.Tensor:
            values = run.labelling.sample(state[: run.num_samples]).values
            return picture_decoder(run.pipeline, values.shape[1], values.ndim - 2)(values)

        def declare() -> None:
            if run.step > 0:
                return
            shape = decode(run.state[:1]).shape[1:]
            recording.declare(self, "images", shape, torch.uint8, per_branch=False)
            recording.declare(self, "final_image", shape, torch.uint8, per_branch=False, steps=frozenset([0]))

        def keep(step: SchedulerStep) -> None:
            if recording.is_selected(self):
                images = decode(predicted_x0(run, step))
                dims = _DIMS[images.ndim]
                recording.keep(self, "images", images, dims, per_branch=False)
            if run.step == len(run.timesteps) - 1:
                ended.append(partial(finish, run.labelling, run.num_samples))

        def finish(labelling: Labelling, samples: int, state: torch.Tensor) -> None:
            values = labelling.sample(state[:samples]).values
            with torch.no_grad():
                images = picture_decoder(run.pipeline, values.shape[1], values.ndim - 2)(values)
            recording.keep_final("final_image", images, _DIMS[images.ndim])

        run.on_start(lambda: check_x0(run.scheduler, run.timesteps[0]))
        run.before_step(declare)
        run.on_step(keep)
        run.on_end(lambda state: ended[-1](state))


_DIMS = {4: ("channel", "height", "width"), 5: ("channel", "frame", "height", "width")}
