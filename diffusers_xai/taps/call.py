"""What the running call of a pipeline was given, read from its frame. Nothing is attached."""

import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class PipelineCall:
    """The arguments and the local variables of a pipeline's `__call__`, as they stand while it runs.

    Attributes:
        arguments (`dict[str, Any]`): By name, defaults filled in.
        locals (`dict[str, Any]`): All local variables.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    locals: dict[str, Any] = field(default_factory=dict)


def running_call(pipeline: Any) -> PipelineCall:
    """The innermost call of `pipeline` on this thread's stack; an empty one if somebody else drives its denoiser."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if code.co_name == "__call__" and names and frame.f_locals.get(names[0]) is pipeline:
            variables = dict(frame.f_locals)
            return PipelineCall({name: variables[name] for name in names[1:] if name in variables}, variables)
        frame = frame.f_back
    return PipelineCall()
