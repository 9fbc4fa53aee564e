"""How many steps a run makes, how its learning rate goes, and how both are fitted to a time."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from training.config import TrainingConfig


# Of a run that is cut to a time and whose configuration has no decay.
DECAY_SHARE = 0.25


@dataclass(frozen=True)
class Schedule:
    """The learning rate's course: linear warm-up, 1, and a linear fall to zero over the last steps.

    Args:
        max_steps (`int`): Steps of the whole run.
        warmup_steps (`int`): The factor rises over the first steps,
        decay_from (`int`): and falls to zero from this step on; `max_steps`: never.
        decay_factor (`float`): What it falls from, below 1 where a fall was fitted to another time.
    """

    max_steps: int
    warmup_steps: int
    decay_from: int
    decay_factor: float = 1.0

    @classmethod
    def of(cls, config: TrainingConfig) -> "Schedule":
        """The configuration's own."""
        return cls(config.max_steps, config.warmup_steps, config.max_steps - config.decay_steps)

    def factor(self, step: int) -> float:
        """Factor of the learning rates at the 0-based `step`."""
        factor = 1.0
        if step < self.warmup_steps:
            factor = (step + 1) / self.warmup_steps
        if step >= self.decay_from:
            factor = min(factor, self.decay_factor * (self.max_steps - step) / (self.max_steps - self.decay_from))
        return factor

    def fitted(self, config: TrainingConfig, step: int, steps_left: int) -> "Schedule":
        """The schedule of a run that is at `step` and has time for so many steps more.

        It never exceeds the configuration's steps. The fall takes the configuration's share of the steps, or a
        quarter where it has none; one that has begun continues.
        """
        end = min(step + steps_left, config.max_steps)
        if self.decay_from < step < self.max_steps:
            return dataclasses.replace(self, max_steps=end, decay_from=step, decay_factor=self.factor(step))
        if end == config.max_steps:
            return Schedule.of(config)
        share = config.decay_steps / config.max_steps or DECAY_SHARE
        return Schedule(end, min(config.warmup_steps, end // 10), max(step, end - round(share * end)))


class TimeLimit:
    """When a run has to be over, and how many steps fit in until then.

    Args:
        seconds (`float`): Time of the run,
        started (`float`): which began at this time of the clock.
        clock (`Callable`): Seconds.
    """

    def __init__(self, seconds: float, started: float, clock: Callable[[], float] = time.monotonic):
        self.seconds = seconds
        self.deadline = started + seconds
        self._clock = clock
        self._marks: list[tuple[int, float]] = []
        self._next = started

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self.deadline

    @property
    def due(self) -> bool:
        """Whether the steps that fit in should be counted again: after the first steps, then fifty times."""
        return self._clock() >= self._next

    def seconds_per_step(self, step: int) -> float | None:
        """The mean over the last fifth of the time, all included that comes between steps; `None` at the first call.

        It is the end of the first step that is to be the first call: that step compiles and warms up.
        """
        now = self._clock()
        self._marks.append((step, now))
        while len(self._marks) > 2 and self._marks[1][1] <= now - self.seconds / 5:
            self._marks.pop(0)
        first_step, first = self._marks[0]
        if first_step == step:
            return None
        self._next = now + self.seconds / 50
        return (now - first) / (step - first_step)

    def steps_left(self, seconds_per_step: float, ending: float) -> int:
        """How many steps fit in if what comes after the last takes `ending` seconds; at most a fifth is kept for it.

        A hundredth of the time stays free.
        """
        left = self.deadline - self._clock() - min(ending, self.seconds / 5) - self.seconds / 100
        return max(0, int(left / seconds_per_step))
