"""With which state a run ends: a callback or blending may change what the last `scheduler.step` gave."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from diffusers_xai.passed import Pipeline


class Ending:
    """Reads a pipeline's state when its progress bar closes, behind the last step and all that follows it in the loop.

    A pipeline whose state cannot be read there, because it is in no variable or the bar is off, ends with what the
    last `scheduler.step` gave if nothing can have changed that: no callback, and no change between earlier steps.

    Attributes:
        state (`torch.Tensor`, *optional*): The state as it was read, in the scheduler's form.
    """

    def __init__(self) -> None:
        self.state: torch.Tensor | None = None
        self._frame: FrameType | None = None
        self._sample: torch.Tensor | None = None
        self._names: list[str] = []
        self._result: torch.Tensor | None = None
        self._changes: torch.Tensor | bool = False  # of a tensor on a GPU, which is not waited for during the run

    def before_step(self, frame: FrameType | None, sample: torch.Tensor) -> None:
        """Notes in which variables of the pipeline's call the state is that `scheduler.step` is given."""
        before = self._result
        if before is not None:
            is_alike = sample.shape == before.shape and sample.device == before.device
            if not is_alike:
                self._changes = True
            elif sample.device.type == "cpu":
                self._changes = self._changes or not torch.equal(sample, before)
            else:  # which is not waited for
                self._changes = self._changes | (sample.detach() != before).any()
        self._frame, self._sample = frame, sample
        self._names = [] if frame is None else [name for name, value in frame.f_locals.items() if value is sample]

    def after_step(self, result: torch.Tensor) -> None:
        """Notes what a step gave."""
        self._result = result.detach().clone()  # whoever drives the loop may change it in place

    def read(self) -> None:
        """Reads the state from the variable that it was in, if the loop has put another one there since."""
        found = {} if self._frame is None else self._frame.f_locals
        values = [found[name] for name in self._names if name in found and found[name] is not self._sample]
        self.state = next((value for value in values if isinstance(value, torch.Tensor)), None)

    def unchanged(self, variables: Mapping[str, Any]) -> torch.Tensor | None:
        """What the last step gave, if nothing can have changed it; `variables` are those of the pipeline's call."""
        calls_back = any(name.startswith("callback") and callable(value) for name, value in variables.items())
        return None if calls_back or self._changes else self._result

    def clear(self) -> None:
        """Lets go of the pipeline's call."""
        self._frame = self._sample = self._result = None


@contextmanager
def tap_progress(pipeline: Pipeline, opened: Callable[[], None], closed: Callable[[], None]) -> Iterator[None]:
    """Calls `opened` when a pipeline makes a progress bar, where it has one, and `closed` before the bar closes.

    Through an instance attribute that is removed at the end.
    """
    original = getattr(pipeline, "progress_bar", None)
    if original is None:
        yield
        return
    had_attribute = "progress_bar" in vars(pipeline)

    def progress_bar(*args: Any, **kwargs: Any) -> Any:
        bar = original(*args, **kwargs)
        opened()
        if hasattr(bar, "close"):
            # A bar that nobody closes does so itself as soon as it is dropped.
            held = weakref.ref(bar) if type(bar).__weakrefoffset__ else lambda: bar

            def close() -> None:
                closing = held()
                if closing is not None:
                    del closing.close  # it is called once more when the bar is dropped
                closed()
                if closing is not None:
                    closing.close()

            bar.close = close
        return bar

    vars(pipeline)["progress_bar"] = progress_bar
    try:
        yield
    finally:
        if had_attribute:
            vars(pipeline)["progress_bar"] = original
        else:
            del vars(pipeline)["progress_bar"]
