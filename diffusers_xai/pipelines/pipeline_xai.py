"""`XAIPipeline`: sampling from a pixel-space U-Net, with recording."""

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from diffusers_xai.labels import ClassLabels, labels_of_images
from diffusers_xai.models import ClosedFormDenoiser
from diffusers_xai.pipelines.arguments import chosen_steps, seeds_of, set_timesteps, with_equal_noise
from diffusers_xai.pipelines.shared_pipeline import SharedPipeline
from diffusers_xai.profile import DiffusionProfile
from diffusers_xai.recording import Edits, RecordingPlan, RecordSpec, check_samples, count_samples
from diffusers_xai.recording import plan as plan_run
from diffusers_xai.recording import record as record_run
from diffusers_xai.taps import scale_model_input


OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class XAIPipelineOutput(BaseOutput):
    """Output of [`XAIPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): The images: a list of pictures, an array
            (batch, height, width, channel) or a tensor (batch, channel, height, width) with values in [0, 1].
        profile (`DiffusionProfile` or `None`): What was recorded; `None` without `record`.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    profile: DiffusionProfile | None = None


class XAIPipeline(SharedPipeline):
    r"""Pipeline for image generation that can record how the image forms.

    It opens repositories of its own and ordinary unconditional or class-conditional `UNet2DModel` ones (DDPM, DDIM),
    and returns the very pixels of their own pipelines.

    Args:
        unet ([`~diffusers.ModelMixin`]): A denoiser of pixel-space samples in [-1, 1] that is called as
            [`~diffusers.UNet2DModel`] is: that one, [`ConvNextUNet2DModel`], or a denoiser whose answer is known.
        scheduler ([`~diffusers.SchedulerMixin`]): Any scheduler of diffusers.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["sample"]

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._interrupt = False

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "XAIPipeline":
        r"""Turns a loaded pipeline into this one, with the same network and scheduler.

        Unlike [`~diffusers.DiffusionPipeline.from_pipe`], it leaves the network's dtype as it is.

        Args:
            pipeline ([`~diffusers.DiffusionPipeline`]): A pipeline of a `unet` and a `scheduler`, such as
                [`~diffusers.DDPMPipeline`].
            **kwargs: Components that replace those of `pipeline`, `dtype`, and what else diffusers takes.

        Raises:
            TypeError: if the pipeline has other components: those of a latent or text-conditioned one have no place
                here, and [`record`] explains such a pipeline as it is.
        """
        components = getattr(pipeline, "components", {})
        others = [name for name, part in components.items() if name not in ("unet", "scheduler") and part]
        if others or "unet" not in components:
            raise TypeError(
                f"Expected a pipeline of a `unet` and a `scheduler`, got {type(pipeline).__name__} with"
                f" {', '.join(components) or 'no components'}. Record that one itself: `with record(pipeline, […])`."
            )
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", pipeline.unet.dtype)
        # Passed, because diffusers hands over only classes that the signature names: no subclass, no code of the Hub.
        return super().from_pipe(pipeline, **{"unet": pipeline.unet, **kwargs})

    @property
    def guidance_scale(self) -> float:
        """Classifier-free guidance of the current or last run; 1 is none."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the denoiser's batch holds an unconditional row per image before the conditional ones."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the current or last run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the run shall end after the current step: a callback sets `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width of the network's samples; with the frames before these of videos."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: ClassLabels | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        sample: torch.Tensor | None = None,
        record: Sequence[RecordSpec] | None = None,
        edits: Edits = (),
        profile_dir: str | os.PathLike | None = None,
        max_bytes: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> XAIPipelineOutput | tuple:
        r"""Samples images.

        Args:
            class_labels (`int`, `dict[str, bool]`, a sequence of them, an array or a tensor, *optional*):
                One label per image: integers in `0 .. num_class_embeds - 1`, the model's null label (no condition), or
                attributes by name such as `{"Smiling": True}`. An array or tensor of shape `(batch, n)` holds a
                one-hot row, or a row of the attributes' bits, per image. Required by a conditional model.
            batch_size (`int`, *optional*):
                Number of images; the number of labels, or 1, if `None`. A single label is repeated.
            num_inference_steps (`int`, *optional*): Number of denoising steps; if `None`, all of the training's
                (usually 1000) with a [`~diffusers.DDPMScheduler`], 50 with any other.
            generator (`torch.Generator` or a list of them, *optional*):
                Source of all noise; a list holds one per image, which makes a batch equal its single runs.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Classifier-free guidance; 1 is none, 0 ignores the label. It equals `1 + w` of thesis eq. 3.4.3.
            eta (`float`, *optional*, defaults to 0.0): η of DDIM; other schedulers ignore it.
            sample (`torch.Tensor` of shape `(batch, channel, height, width)`, *optional*):
                Initial noise of unit variance, drawn from `generator` if `None`.
            record (sequence of `RecordSpec`, *optional*): What to record, e.g. `[Samples(every=100)]`.
            edits (sequence of `EditSpec`, or one sequence of them per image, *optional*):
                What to change while sampling, e.g. `[LabelSwitch(from_step=500, to=3)]`. One sequence per image
                compares variants in one batch: a single label and a single generator are then those of every image,
                with the same noise for all.
            profile_dir (`str` or `os.PathLike`, *optional*): A new folder that the profile is written to while
                sampling, so that memory does not grow with the number of steps, see [`record`].
            max_bytes (`int`, *optional*): Refuses a profile that would be larger, before the first step, see [`plan`].
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, *optional*, defaults to `True`): Return an output object instead of a tuple.
            callback_on_step_end (`Callable`, `PipelineCallback` or `MultiPipelineCallbacks`, *optional*):
                Called as `callback(pipe, step, timestep, {"sample": x})` after every step; may return a dict with a
                new `"sample"`, and end the run by `pipe._interrupt = True`.
            callback_on_step_end_tensor_inputs (sequence of `str`, *optional*): What the callback gets: `["sample"]`.
                A `PipelineCallback` says that itself.
            timesteps (sequence of `int`, *optional*): The timesteps themselves, descending, instead of their number;
                for schedulers that take them.
            sigmas (sequence of `float`, *optional*): The noise levels, descending, instead of their number; for
                schedulers that take them.

        Returns:
            [`XAIPipelineOutput`] or `tuple`: images and profile.

        Raises:
            ValueError, TypeError, KeyError: for inputs that do not fit the model, before sampling starts.
            FileExistsError: if there is something at `profile_dir`.
        """
        if record is None and (profile_dir is not None or max_bytes is not None):
            raise ValueError("Expected `record` beside `profile_dir` and `max_bytes`, got None.")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        labels = self.encode_labels(class_labels, batch_size, guidance_scale)
        variants = count_samples(edits)
        if variants is not None:
            if batch_size is None and len(labels) == 1:
                labels = [*labels] * variants
            check_samples(edits, len(labels))
            generator = with_equal_noise(generator, variants)
        batch_size = len(labels)
        self.check_inputs(batch_size, generator, sample, output_type, callback_on_step_end_tensor_inputs)
        device = self._execution_device

        with ExitStack() as stack:
            recording = None
            if record is not None or edits:  # first: the scheduler of a run that is being recorded stays as it is
                recording = stack.enter_context(record_run(self, record or (), edits, profile_dir, max_bytes))
                recording.describe(
                    class_labels=[None if label is None else int(label) for label in labels],
                    seeds=seeds_of(generator, batch_size),
                    guidance_scale=guidance_scale,
                    eta=eta,
                    **chosen_steps(self.scheduler, num_inference_steps, timesteps, sigmas),
                )
            self._guidance_scale = guidance_scale
            self._interrupt = False
            steps = set_timesteps(self.scheduler, num_inference_steps, timesteps, sigmas, device)
            self._num_timesteps = len(steps)
            sample = self.prepare_sample(batch_size, generator, sample)
            step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
            for i, t in enumerate(self.progress_bar(steps)):
                if self.interrupt:
                    break
                model_output = self.predict(sample, t, labels, self.guidance_scale)
                sample = self.scheduler.step(model_output, t, sample, **step_kwargs).prev_sample
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, sample)
                    sample = (callback_on_step_end(self, i, t, tensors) or {}).get("sample", sample)
            if recording is not None:
                recording.run.end(sample)

        images = self._decode(sample, output_type)
        self.maybe_free_model_hooks()
        profile = recording.profile if recording is not None and record is not None else None
        if not return_dict:
            return images, profile
        return XAIPipelineOutput(images=images, profile=profile)

    def plan(
        self,
        record: Sequence[RecordSpec] = (),
        edits: Edits = (),
        num_inference_steps: int | None = None,
        batch_size: int | None = None,
        guidance_scale: float = 1.0,
    ) -> RecordingPlan:
        r"""Tells what a recording would cost, without sampling: `print(pipe.plan([Samples(), AttentionOutputs()]))`.

        The network is run a few times, to see its layers and to measure its time.

        Args:
            record (sequence of `RecordSpec`): What would be recorded.
            edits (sequence of `EditSpec`, or one sequence of them per image): What would be changed.
            num_inference_steps (`int`, *optional*): Number of denoising steps; as in a call if `None`.
            batch_size (`int`, *optional*): Number of images; the number of sequences in `edits`, or 1, if `None`.
            guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.

        Returns:
            [`RecordingPlan`]: The size of every array, exactly, and estimates of time; prints as a table.

        Raises:
            ValueError, TypeError, KeyError: as a run with these arguments would.
        """
        batch_size = batch_size or count_samples(edits) or 1
        label = None if self.unet.config.get("num_class_embeds") is None else 0
        check_samples(edits, batch_size)
        return plan_run(
            self,
            record,
            edits,
            class_labels=label,
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )

    def encode_labels(
        self, class_labels: ClassLabels | None, batch_size: int | None = None, guidance_scale: float = 1.0
    ) -> list[int | None]:
        """The labels of a run as integers, one per image; `None`s for an unconditional model.

        Args:
            class_labels: As in a call.
            batch_size (`int`, *optional*): Number of images; a single label is repeated.
            guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance.

        Raises:
            ValueError, TypeError: for labels, a batch size or guidance that do not fit the model.
        """
        network = type(self.unet).__name__
        return labels_of_images(class_labels, self.unet.config, network, batch_size, guidance_scale)

    def check_inputs(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        sample: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raises a ValueError for arguments of a call that do not fit the model or each other."""
        if isinstance(self.unet, ClosedFormDenoiser):
            self.unet.check_scheduler(self.scheduler)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"Expected {batch_size} generators, one per image, got {len(generator)}.")
        channels, *size = self.sample_shape
        if sample is not None and (sample.ndim != 2 + len(size) or sample.shape[:2] != (batch_size, channels)):
            expected = f"({batch_size}, {channels}, height, width)"
            raise ValueError(f"Expected `sample` of shape {expected}, got {tuple(sample.shape)}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"Expected `output_type` in {OUTPUT_TYPES}, got {output_type!r}.")
        if len(size) != 2 and output_type != "pt":
            raise ValueError(f"Expected `output_type='pt'` for samples that are no images, got {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"Expected `callback_on_step_end_tensor_inputs` from {self._callback_tensor_inputs}, got"
                f" {sorted(unknown)}."
            )

    def prepare_sample(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The state that a run starts from: noise, or `sample` in its place, as strong as the scheduler has it."""
        device, dtype = self._execution_device, self.unet.dtype
        if sample is None:
            sample = randn_tensor((batch_size, *self.sample_shape), generator=generator, device=device, dtype=dtype)
        # DDPM and DDIM start from unit variance: a multiplication by one leaves their pixels as they are.
        return sample.to(device, dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def prepare_extra_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, eta: float
    ) -> dict[str, Any]:
        """The ones among `generator` and `eta` that the scheduler's step takes."""
        accepted = inspect.signature(self.scheduler.step).parameters
        return {k: v for k, v in {"generator": generator, "eta": eta}.items() if k in accepted}

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        labels: Sequence[int | None],
        guidance_scale: float = 1.0,
    ) -> torch.Tensor:
        """The network's output for a batch of states at a timestep, guidance applied.

        Args:
            sample (`torch.Tensor` of shape `(batch, channel, height, width)`): The states.
            timestep (`torch.Tensor`): The scheduler's t.
            labels (sequence of `int`, or of `None`): One per image, from [`encode_labels`].
            guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
        """
        guided = guidance_scale != 1.0
        if guided:
            labels = [self.unet.config.null_class_label] * len(labels) + list(labels)
        model_input = torch.cat([sample, sample]) if guided else sample
        model_input = scale_model_input(self.scheduler, model_input, timestep)
        label_tensor = _label_tensor(labels, sample.device)
        model_output = self.unet(model_input, timestep, class_labels=label_tensor).sample
        if guided:
            uncond, cond = model_output.chunk(2)
            model_output = uncond + guidance_scale * (cond - uncond)
        return model_output

    def _decode(self, sample: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


def _label_tensor(labels: Sequence[int | None], device: torch.device) -> torch.Tensor | None:
    return None if labels[0] is None else torch.tensor(labels, device=device)
