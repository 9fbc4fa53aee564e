"""The base of everything that can be recorded."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusers_xai.recording.planned import PlanContext, PlannedArray
from diffusers_xai.recording.steps import StepSpec


if TYPE_CHECKING:
    from diffusers_xai.recording.recording import Recording


@dataclass(frozen=True, kw_only=True)
class RecordSpec(StepSpec):
    """What to record, and at which steps (see [`StepSpec`])."""

    def attach(self, recording: Recording, stack: ExitStack) -> None:
        """Enters on `stack` the taps that feed `recording`. Refuses here what cannot be recorded."""
        raise NotImplementedError

    def plan(self, context: PlanContext) -> list[PlannedArray]:
        """The arrays that this spec would record of the run in `context`, of the very size they would have."""
        raise NotImplementedError
