"""The base of everything that can be recorded."""

from contextlib import ExitStack
from dataclasses import dataclass

from diffusers_xai.recording.recording import Recording
from diffusers_xai.recording.steps import StepSpec


@dataclass(frozen=True, kw_only=True)
class RecordSpec(StepSpec):
    """What to record, and at which steps (see [`StepSpec`])."""

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Enters on `stack` the taps that feed `recording`. Refuses here what cannot be recorded.

        At the first step of a run everything is looked at, selected or not, so that its size is known.
        """
        raise NotImplementedError
