"""Prompt switch: another prompt from some step on."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import EditSpec, first_switched_step
from diffusers_xai.recording.shadow import shadow_arguments, shadow_of
from diffusers_xai.taps import tap_call
from diffusers_xai.taps.call import PipelineCall


class _Seen(BaseException):
    """Leaves a pipeline's call when the denoiser calls that are wanted have been seen."""


@dataclass(frozen=True, kw_only=True)
class PromptSwitch(EditSpec):
    """Conditions on another prompt from a step on; the noise and everything else stay.

    What the denoiser would get for the other prompt is found by calling the pipeline beside the run, up to its first
    denoiser call, with the same other arguments. Under guidance the negative prompt stays as it is.

    Args:
        to (`str` or sequence of `str`): The other prompt, one for all images or one each, as the pipeline's `prompt`.
        from_step (`int`, *optional*): Index of the first step with the new prompt: 0 switches the whole run, the
            number of steps nothing.
        from_timestep (`float`, *optional*): Instead of `from_step`, a value of the scheduler's t: the step whose t is
            nearest (the first of several) is the first one with the new prompt.

    Raises:
        TypeError: if `to` is no prompt.
        ValueError: if not exactly one of `from_step` and `from_timestep` is given; before sampling starts, if the
            pipeline takes no prompt, if there is no such step, or if images should be switched one by one.
    """

    to: str | Sequence[str]
    from_step: int | None = None
    from_timestep: float | None = None

    def __post_init__(self) -> None:
        prompts = [self.to] if isinstance(self.to, str) else list(self.to)
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"Expected `to` as a prompt or several, got {self.to!r}.")
        object.__setattr__(self, "to", self.to if isinstance(self.to, str) else tuple(prompts))
        first_switched_step(self, None)

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Replaces the condition in the denoiser's calls."""
        if samples is not None:
            raise ValueError(
                "PromptSwitch: expected edits of all images, got edits image by image; give `to` a prompt each."
            )
        calls: list[DenoiserCall] = []

        def switch(first: int, call: DenoiserCall) -> DenoiserCall | None:
            if run.step < first:
                return None
            return _conditioned(call, calls[min(len(run.calls) - 1, len(calls) - 1)])

        def start() -> None:
            first = first_switched_step(self, run)
            calls.extend(self._other_calls(run))
            run.on_call(lambda call: switch(first, call), order=first)  # the latest switch has the last word

        run.on_start(start)

    def _other_calls(self, run: Run) -> list[DenoiserCall]:
        """The denoiser calls of the first step for the other prompt."""
        arguments = run.call.arguments
        if "prompt" not in arguments or arguments["prompt"] is None:
            raise ValueError(
                f"PromptSwitch: expected a pipeline that was called with a `prompt`, got {type(run.pipeline).__name__}"
                f" with {', '.join(name for name, value in arguments.items() if value is not None) or 'no arguments'}."
            )
        shadow = shadow_of(run.pipeline)
        seen: list[DenoiserCall] = []

        def stop(*_: Any, **__: Any) -> None:
            raise _Seen

        to = self.to if isinstance(self.to, str) else list(self.to)
        if isinstance(to, str) and isinstance(arguments["prompt"], list):
            to = [to] * len(arguments["prompt"])
        given = shadow_arguments(_given(run.call))
        given["prompt"] = to  # further prompts (`prompt_2`, …) follow the first where they were left out
        shadow.scheduler.step = stop
        with ExitStack() as stack:
            stack.enter_context(run.replaying())
            stack.enter_context(torch.random.fork_rng())
            for name, module in run.denoiser.components.items():
                read = lambda args, kwargs, name=name, module=module: seen.append(  # noqa: E731
                    DenoiserCall(name, module, args, kwargs)
                )
                stack.enter_context(tap_call(module, read))
            try:
                shadow(**given)
            except _Seen:
                return seen
        raise ValueError("PromptSwitch: the pipeline came to its end without a call of `scheduler.step`.")

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON-able data."""
        return {
            "type": "PromptSwitch",
            "to": self.to,
            "from_step": self.from_step,
            "from_timestep": self.from_timestep,
        }


def _given(call: PipelineCall) -> dict[str, Any]:
    """What the pipeline was called with, or else what can still be told of it."""
    if call.given is not None:
        return call.given
    # By now the pipeline has put what it computed into some of its arguments.
    return {
        name: value
        for name, value in call.arguments.items()
        if name not in ("latents", "timesteps", "sigmas")
        and not ("prompt" in name and name.endswith(("embeds", "mask")))
    }


def _conditioned(call: DenoiserCall, other: DenoiserCall) -> DenoiserCall:
    """`call` with everything but sample and timestep from `other`."""
    kept = {call.sample_name, "timestep", "timesteps", "timestep_ratio", "t"}
    names = list(other.arguments)
    args = tuple(
        mine if i == 0 or names[i] in kept else theirs
        for i, (mine, theirs) in enumerate(zip(call.args, other.args, strict=True))
    )
    kwargs = {name: value if name in kept else other.kwargs[name] for name, value in call.kwargs.items()}
    return DenoiserCall(call.component, call.module, args, kwargs)
