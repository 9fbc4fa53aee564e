"""Pipelines that take a prompt: what they are asked for, checked before their weights are loaded."""

import inspect
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.options import SCHEDULERS, spoken
from diffusers_xai.cli.pipelines import check_every, check_steps, pipeline_of_prompts, read_json, read_scheduler
from diffusers_xai.cli.profile_request import ProfileRequest
from diffusers_xai.interventions import PromptSwitch


_DEFAULT_STEPS = 50


def prompt_pipeline(request: ProfileRequest) -> type[DiffusionPipeline] | None:
    """The class of the checkpoint's pipeline if it takes a prompt; `None` for one of labels or without a condition.

    Raises:
        CommandError, ValueError, OSError: if there is no such checkpoint, or it takes another condition than is given.
    """
    kind = pipeline_of_prompts(request)
    if kind is None:
        for option, value in _options(request).items():
            if value is not None:
                raise CommandError(
                    f"{option}: {spoken(request.checkpoint)} takes no prompt: expected"
                    " --label, or a --checkpoint whose pipeline takes one"
                )
        return None
    if request.label is not None:
        raise CommandError(f"--label {request.label}: {kind.__name__} takes no label: expected --prompt TEXT")
    if request.prompt is None:
        raise CommandError(f"{kind.__name__} needs a prompt: expected --prompt TEXT")
    return kind


def _options(request: ProfileRequest) -> dict[str, Any]:
    return {
        "--prompt": request.prompt, "--negative-prompt": request.negative_prompt, "--height": request.height,
        "--width": request.width, "--words": request.words or None, "--dtype": request.dtype,
    }  # fmt: skip


def call_arguments(request: ProfileRequest, kind: type[DiffusionPipeline]) -> dict[str, Any]:
    """The arguments of the pipeline's call, without the noise.

    Raises:
        CommandError, ValueError, OSError: for an option that the pipeline lacks, or a pipeline that needs more.
    """
    parameters = inspect.signature(kind.__call__).parameters
    wanted = {
        "prompt": request.prompt, "negative_prompt": request.negative_prompt, "height": request.height,
        "width": request.width, "guidance_scale": request.guidance_scale,
    }  # fmt: skip
    arguments = {name: value for name, value in wanted.items() if value is not None}
    for name in arguments:
        if name not in parameters:
            available = ", ".join(f"--{name.replace('_', '-')}" for name in wanted if name in parameters)
            raise CommandError(
                f"--{name.replace('_', '-')}: expected none, as {kind.__name__} takes none; available: {available}"
            )
    missing = [
        parameter.name
        for parameter in list(parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.name != "prompt"
    ]
    missing += [name for name in ("image", "video") if name in parameters and name not in missing]
    if missing:
        raise CommandError(
            f"expected a pipeline of a prompt, got {kind.__name__}, which takes {', '.join(missing)}: use `record`"
        )
    default = parameters["num_inference_steps"].default if "num_inference_steps" in parameters else None
    steps = request.steps or (default if isinstance(default, int) else _DEFAULT_STEPS)
    scheduler = read_scheduler(request)
    check_steps(steps, scheduler)
    check_every(request.every, steps)
    if request.scheduler is not None:
        own = str(read_json(request, "scheduler/scheduler_config.json").get("_class_name"))
        fitting = {own, *getattr(getattr(diffusers, own, None), "_compatibles", ())}
        if SCHEDULERS[request.scheduler] not in fitting:
            names = ", ".join(name for name, kind in SCHEDULERS.items() if kind in fitting) or "none"
            raise CommandError(
                f"--scheduler: expected one that fits the {own} there, got {request.scheduler}; available: {names}"
            )
    for step, _ in request.switch:
        if step >= steps:
            raise CommandError(f"--switch {step}: expected a step in 0..{steps - 1}, got {step}")
    return {**arguments, "num_inference_steps": steps}


def prompt_switches(request: ProfileRequest) -> list[PromptSwitch]:
    """The edits of `--switch STEP:PROMPT`."""
    return [PromptSwitch(from_step=step, to=prompt) for step, prompt in request.switch]
