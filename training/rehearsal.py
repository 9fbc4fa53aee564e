"""What a run needs of its settings, tried out before a picture is read."""

import inspect
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel
from training.config import FIXED_SETTINGS, TrainingConfig, fits, in_words
from training.data import FaceImages
from training.optim import build_optimizers


FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def rehearse_network(config: TrainingConfig) -> ConvNextUNet2DModel:
    """Builds the network, sends the shapes of an image through it, and makes its optimizers.

    Raises:
        ValueError: If one of them fails.
    """
    try:
        _check_settings(config.model, ConvNextUNet2DModel)
        model = ConvNextUNet2DModel(**config.model)
        size = config.model.get("sample_size", 64)
        with torch.no_grad(), torch.device("meta"):
            labels = None if model.class_embedding is None else torch.zeros(1, dtype=torch.int64)
            # Values of labels are not checked while compiling, and on this device there are none.
            shadow = ConvNextUNet2DModel(**config.model)
            shadow._check_inputs = lambda *_: None
            shadow(torch.zeros(1, 3, size, size), torch.zeros(1), labels)
        build_optimizers(model, config)
    except Exception as error:  # of many classes, for settings of a wrong type or size
        raise ValueError(f"model settings: {error}") from error
    return model


def rehearse_scheduler(config: TrainingConfig) -> None:
    """Builds the noise schedule, and steps through it as the sample grid and the exported pipeline do.

    Raises:
        ValueError: If the schedule cannot be trained or sampled.
    """
    try:
        _check_settings(config.scheduler, DDPMScheduler)
        scheduler = DDPMScheduler(**config.scheduler)
        length, variance = scheduler.config.num_train_timesteps, scheduler.config.variance_type
        if variance not in FIXED_VARIANCES:
            raise ValueError(f"expected variance_type in {FIXED_VARIANCES}, got {variance!r}: no variance is learned")
        betas, signal = scheduler.betas, scheduler.alphas_cumprod
        if len(betas) != length:
            raise ValueError(f"expected num_train_timesteps betas ({length}), got {len(betas)}")
        if not (len(betas) and ((betas > 0) & (betas <= 1)).all()):
            raise ValueError("expected at least one timestep, and betas above 0 and at most 1")
        if not signal[-1] > 0 and config.prediction_type == "epsilon":
            raise ValueError(
                "where the last timestep is pure noise, its noise says nothing of the image: expected prediction_type"
                " 'v_prediction' or 'sample', got 'epsilon'"
            )
        if not 1 <= config.sample_steps <= length:
            raise ValueError(f"expected sample_steps in 1..{length}, got {config.sample_steps}")
        ddim = DDIMScheduler.from_config(scheduler.config)
        for sampler, steps in ((ddim, config.sample_steps), (scheduler, length)):
            sampler.set_timesteps(steps)
            for t in (sampler.timesteps[0], sampler.timesteps[-1]):
                x = torch.ones(1, 3, 2, 2)
                if not sampler.step(x, t, x).prev_sample.isfinite().all():
                    raise ValueError(f"expected finite steps of {type(sampler).__name__}, got others at t={int(t)}")
    except Exception as error:
        raise ValueError(f"scheduler settings: {error}") from error
    if not all(0 <= t < length for t in config.validation_timesteps):
        raise ValueError(f"expected validation_timesteps in 0..{length - 1}, got {config.validation_timesteps}")


def rehearse_device(config: TrainingConfig) -> None:
    """Asks for the precision and the tracker on this machine.

    Raises:
        ValueError: If it lacks one of them.
    """
    trackers = [str(tracker.value) for tracker in get_available_trackers()]
    if config.tracker is not None and config.tracker not in trackers:
        raise ValueError(f"expected tracker null or one that is installed, {trackers}, got {config.tracker!r}")
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
    except Exception as error:
        raise ValueError(f"mixed_precision {config.mixed_precision!r}: {error}") from error
    if config.mixed_precision != "no" and not accelerator.native_amp:  # on a CPU fp16 would quietly be float32
        raise ValueError(
            f"expected a mixed_precision that works on {accelerator.device}, got {config.mixed_precision!r}"
        )


def check_same_run(state: dict[str, Any], config: TrainingConfig, num_processes: int) -> None:
    """Compares what a checkpoint says of its run with the settings that are to continue it.

    Raises:
        ValueError: If a resumed run would mean something else: another network, objective, choice of images, measure,
            or number of images per step.
    """
    before, now = ({**s, **_with_defaults(s)} for s in (state["config"], json.loads(json.dumps(config.to_dict()))))
    changed = [
        f"{name} {before[name]!r} became {now[name]!r}"
        for name in FIXED_SETTINGS
        if name in before and before[name] != now[name]
    ]
    images = config.batch_size * config.gradient_accumulation_steps * num_processes
    if images != state["images_per_step"]:
        changed.append(
            f"{state['images_per_step']} images per step (batch_size * gradient_accumulation_steps * processes) became"
            f" {images}"
        )
    if changed:
        raise ValueError(
            f"--resume: expected the same run, got {'; '.join(changed)}. For another run, export this one and"
            " --start-from its weights"
        )
    if state["step"] > config.max_steps:
        raise ValueError(f"expected max_steps of at least the checkpoint's {state['step']}, got {config.max_steps}")


def check_same_data(state: dict[str, Any], train: FaceImages, validation: FaceImages) -> None:
    """Raises a ValueError if a checkpoint's run saw, or was measured on, other images or other labels of them."""
    for part, name, images in (("data", "training", train), ("validation", "validation", validation)):
        if part in state and state[part] != images.fingerprint:  # checkpoints of an older release do not say
            raise ValueError(
                f"--resume: expected the {name} images and labels that the run saw, got others of --data."
                " For another run, export this one and --start-from its weights"
            )


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Network and scheduler with the arguments that are not said, so that saying a default is no change."""
    classes = {"model": ConvNextUNet2DModel, "scheduler": DDPMScheduler}
    filled = {}
    for name, kind in classes.items():
        parameters = inspect.signature(kind.__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        filled[name] = json.loads(json.dumps({**defaults, **settings[name]}))
    return filled


def _check_settings(settings: Mapping[str, Any], trained: type) -> None:
    """A `config.json` of diffusers may stand in the settings, but the class that it names is not what chooses here.

    Settings of simple types are of them: `"no"` would count as true.
    """
    name = settings.get("_class_name", trained.__name__)
    if name != trained.__name__:
        raise ValueError(f"expected _class_name {trained.__name__!r} or none, got {name!r}")
    for name, kind in get_type_hints(trained.__init__).items():
        if kind in (bool, int, float, str) and name in settings and not fits(settings[name], kind):
            raise ValueError(f"expected {name} as {in_words(kind)}, got {settings[name]!r}")
