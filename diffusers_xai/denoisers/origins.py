"""Which tokens of layers' outputs come from the sample, as far as that is known."""

from collections.abc import Mapping, Sequence
from typing import Any


# By layer, of every run of it in a call and each tensor that it puts out, by axis: which indices hold places of the
# sample.
Origins = Mapping[str, Sequence[Sequence[Mapping[int, Sequence[bool]]]]]


class UnknownOrigins(dict[str, Any]):
    """Origins of no layer, as the network cannot be called beside the run.

    Args:
        error (`str`): What it said.
    """

    def __init__(self, error: str):
        super().__init__()
        self.error = error


def holds_sample(origins: Origins | None, path: str) -> bool | None:
    """Whether anything that a layer puts out comes from the sample; `None` if that could not be found out."""
    if isinstance(origins, UnknownOrigins):
        return None
    marks = [marks for run in (origins or {}).get(path, ()) for axes in run for marks in axes.values()]
    return not marks or any(any(of_axis) for of_axis in marks)


def position_of(origins: Origins | None, path: str, stream: str) -> int:
    """Which of the tensors that a layer puts out holds a stream, `"image"` or `"text"`; the first if not known."""
    for run in (origins or {}).get(path, ()):
        for position, axes in enumerate(run[:2]):
            marks = axes.get(1, ())
            if any(marks) if stream == "image" else marks and not all(marks):
                return position
    return 0


def marks_of(
    origins: Origins | None, path: str, position: int, axis: int, size: int, ran: int
) -> Sequence[bool] | None:
    """Which indices of an axis of a layer's output hold places of the sample; `None` if that is not known.

    Args:
        origins (`Origins`, *optional*): All tokens are the sample's if `None`.
        path (`str`): The layer.
        position (`int`): Which of the tensors that it puts out.
        axis (`int`): The axis, and
        size (`int`): its size.
        ran (`int`): How often the layer has run in the call, of layers whose runs differ.
    """
    if origins is None:
        return (True,) * size
    own = [tuple(run[position].get(axis, ())) if position < len(run) else () for run in origins.get(path, ())]
    found = {marks for marks in own if len(marks) == size}
    if len(found) == 1:
        return next(iter(found))
    now = ran - 1
    return own[now] if 0 <= now < len(own) and len(own[now]) == size else None


def run_of(marks: Sequence[bool]) -> slice | None:
    """Where the true ones stand, if next to each other."""
    start, count = marks.index(True), sum(marks)
    return slice(start, start + count) if all(marks[start : start + count]) else None
