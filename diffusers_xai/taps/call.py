"""What the running call of a pipeline was given, read from its frame. Nothing is attached."""

import inspect
import sys
from collections.abc import Callable, Iterator
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
    return next((frame for frame, first in _frames(_is_call) if first is pipeline), None)


def another_runs(pipeline: Pipeline) -> bool:
    """Whether this thread is in a call of another pipeline, and not of `pipeline`.

    What looks like another one may be an object around `pipeline`: it calls a method of this, such as `encode_prompt`.
    """
    found = False
    for frame, first in _frames():
        if first is pipeline and (_is_call(frame) or not found):
            return False
        found = found or (_is_call(frame) and hasattr(first, "scheduler"))
    return found


def _frames(wanted: Callable[[FrameType], bool] = lambda frame: True) -> Iterator[tuple[FrameType, Any]]:
    """The frames on this thread's stack, the innermost first, and their first arguments, of methods the object.

    Only those that are `wanted`: to read a frame's variables takes longer than to look at its name.
    """
    frame: FrameType | None = sys._getframe(2)  # without the one that asks, whose argument is the pipeline
    while frame is not None:
        code = frame.f_code
        if code.co_argcount + code.co_kwonlyargcount and wanted(frame):
            yield frame, frame.f_locals.get(code.co_varnames[0])
        frame = frame.f_back


def _is_call(frame: FrameType) -> bool:
    return frame.f_code.co_name == "__call__"


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
