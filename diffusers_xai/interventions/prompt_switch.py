"""Prompt switch: another prompt from some step on."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import EditSpec, first_switched_step
from diffusers_xai.recording.inputs import goes_into
from diffusers_xai.recording.repeat import repeated, selected, tensors_in
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
        controls: list[DenoiserCall] = []

        def switch(first: int, call: DenoiserCall) -> DenoiserCall | None:
            if run.step < first:
                return None
            own = {id(tensor) for _, output in run.controls for tensor in tensors_in(output)}
            call = _conditioned(call, _counterpart(run, call, calls), run, own)
            if run.step > 0 or not controls:
                return call
            # The ControlNet of the first step has been called before the switch could be known.
            return DenoiserCall(call.component, call.module, *repeated(call, call.rows, 1, replaced=controlled()))

        def controlled() -> dict[int, torch.Tensor]:
            found: dict[int, torch.Tensor] = {}
            for (own, output), other in zip(run.controls, controls, strict=True):
                edited = _conditioned(own, other, run)
                with run.replaying():
                    switched = edited.module(*edited.args, **edited.kwargs)
                found |= {id(a): b for a, b in zip(tensors_in(output), tensors_in(switched), strict=True)}
            return found

        def switch_control(first: int, call: DenoiserCall) -> DenoiserCall | None:
            if run.step < first:
                return None
            return _conditioned(call, controls[min(len(run.controls), len(controls) - 1)], run)

        def start() -> None:
            first = first_switched_step(self, run)
            if not all(goes_into(output, run.calls) for _, output in run.controls):
                raise ValueError(
                    "PromptSwitch: expected the outputs of the ControlNet in the denoiser's arguments as they are,"
                    f" but {type(run.pipeline).__name__} changes them in between."
                )
            others = self._calls_beside(run, self.to)
            # Beside the run too: there, what is drawn at random is the same for both prompts.
            for own, other in zip(self._calls_beside(run, None), others, strict=True):
                run.prompt_arguments.setdefault(_role(run, own), set()).update(_differing(own, other))
            controls.extend(call for call in others if call.component in run.control_networks)
            calls.extend(call for call in others if call.component in run.denoiser.components)
            run.prompt_switches.append((first, calls))
            run.on_call(lambda call: switch(first, call), order=first)  # the latest switch has the last word
            run.on_control(lambda call: switch_control(first, call), order=first)

        run.on_start(start)

    def _calls_beside(self, run: Run, prompt: str | Sequence[str] | None) -> list[DenoiserCall]:
        """The calls of the denoiser, and of ControlNets, in the first step for a prompt; the run's own if `None`."""
        arguments = run.call.arguments
        if "prompt" not in arguments or arguments["prompt"] is None:
            raise ValueError(
                f"PromptSwitch: expected a pipeline that was called with a `prompt`, got {type(run.pipeline).__name__}"
                f" with {', '.join(name for name, value in arguments.items() if value is not None) or 'no arguments'}."
            )
        seen: list[DenoiserCall] = []

        def stop(*_: Any, **__: Any) -> None:
            raise _Seen

        given = shadow_arguments(_given(run.call))
        if prompt is not None:
            to: Any = prompt if isinstance(prompt, str) else list(prompt)
            # Further prompts (`prompt_2`, …) follow the first where they were left out.
            given["prompt"] = [to] * len(arguments["prompt"]) if _is_one_of_several(to, arguments["prompt"]) else to
        with ExitStack() as stack:
            shadow = stack.enter_context(shadow_of(run.pipeline))
            shadow.scheduler.step = stop
            stack.enter_context(run.replaying())
            stack.enter_context(torch.random.fork_rng())
            for name, module in {**run.denoiser.components, **run.control_networks}.items():
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


def _differing(call: DenoiserCall, other: DenoiserCall) -> list[str]:
    """The arguments that the other prompt changes: of two calls at the same step all but the sample."""
    names = [name for name in call.arguments if name != call.sample_name and name in other.arguments]
    return [name for name in names if not _same(call.arguments[name], other.arguments[name])]


def _same(one: Any, other: Any) -> bool:
    tensors, others = list(tensors_in(one)), list(tensors_in(other))
    if not tensors and not others:
        return one is other or one == other
    pairs = zip(tensors, others, strict=False)
    return len(tensors) == len(others) and all(torch.equal(a, b) for a, b in pairs)


def _is_one_of_several(prompt: Any, prompts: Any) -> bool:
    return isinstance(prompt, str) and isinstance(prompts, list)


def _counterpart(run: Run, call: DenoiserCall, calls: Sequence[DenoiserCall]) -> DenoiserCall:
    """The call of the first step, or its rows, that belongs to one of any step; some steps guide in another way."""
    index = len(run.calls) - 1
    if index < len(calls) and calls[index].rows == call.rows:
        return calls[index]
    names, samples = run.branches_of_calls(run.num_samples)[index], run.num_samples
    wanted = "cond" if names == ("skipped",) else names[0]
    for other, branches in zip(calls, run.guidance.calls, strict=False):
        if len(names) == 1 and wanted in branches:
            first = branches.index(wanted) * samples
            args, kwargs = selected(other, range(first, first + samples), run.labelling.frames)
            return DenoiserCall(other.component, other.module, args, kwargs)
    raise RuntimeError(
        f"PromptSwitch: expected denoiser calls as at the first step, got call {index + 1} of {call.rows} rows at step"
        f" {run.step}: the pipeline guides in another way there."
    )


def _role(run: Run, call: DenoiserCall) -> str:
    """A ControlNet's name; of all networks that denoise the same, the later ones take over from the first."""
    return call.component if call.component in run.control_networks else "denoiser"


def _conditioned(
    call: DenoiserCall, other: DenoiserCall, run: Run, own: Collection[int] = frozenset()
) -> DenoiserCall:
    """`call` with the arguments of `other` that prompts change, without those that hold tensors of these ids."""
    for name in run.prompt_arguments.get(_role(run, call), ()):
        if name in call.arguments and not any(id(tensor) in own for tensor in tensors_in(call.arguments[name])):
            call = call.with_argument(name, other.arguments[name])
    return call
