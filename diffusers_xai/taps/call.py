"""What the running call of a pipeline was given, read from its frame. Nothing is attached."""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from diffusers_xai.passed import Pipeline


@dataclass(frozen=True)
class PipelineCall:
    """The arguments and the local variables of a pipeline's `__call__`, as they stand while it runs.

    Attributes:
        arguments (`dict[str, Any]`): By name, defaults filled in.
        locals (`dict[str, Any]`): All local variables.
        given (`dict[str, Any]`, *optional*): The arguments as the caller gave them, before the pipeline put what it
            computed into some; `None` where nothing wraps the call (`torch.no_grad` does in every pipeline of
            diffusers).
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    locals: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] | None = None


def running_frame(pipeline: Pipeline) -> FrameType | None:
    """The frame of the innermost call of `pipeline` on this thread's stack; `None` if somebody else runs."""
    return next((frame for frame, caller in _calls() if caller is pipeline), None)


def another_runs(pipeline: Pipeline) -> bool:
    """Whether this thread is in a call of another pipeline, and not of `pipeline`."""
    callers = [caller for _, caller in _calls() if hasattr(caller, "scheduler")]
    return bool(callers) and all(caller is not pipeline for caller in callers)


def _calls() -> Iterator[tuple[FrameType, Any]]:
    """The frames of `__call__` methods on this thread's stack, the innermost first, and whose they are."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if names:
                yield frame, frame.f_locals.get(names[0])
        frame = frame.f_back


def running_call(pipeline: Pipeline) -> PipelineCall:
    """The innermost call of `pipeline` on this thread's stack; an empty one if somebody else drives its denoiser."""
    frame = running_frame(pipeline)
    if frame is None:
        return PipelineCall()
    code, variables = frame.f_code, dict(frame.f_locals)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    arguments = {name: variables[name] for name in names[1:] if name in variables}
    return PipelineCall(arguments, variables, _given(pipeline, frame.f_back))


def _given(pipeline: Pipeline, frame: FrameType | None) -> dict[str, Any] | None:
    """The arguments that a wrapper of the call passes on, by name; `None` if the frame is no wrapper."""
    if frame is None:
        return None
    values = inspect.getargvalues(frame)
    if values.varargs is None or values.keywords is None:
        return None
    args, kwargs = values.locals[values.varargs], values.locals[values.keywords]
    if not args or args[0] is not pipeline:
        return None
    bound = dict(inspect.signature(type(pipeline).__call__).bind(*args, **kwargs).arguments)
    del bound[next(iter(bound))]  # the pipeline itself
    return bound
