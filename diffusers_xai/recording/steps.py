"""At which steps something happens: the base of everything that is recorded or changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from diffusers_xai.profile.selection import nearest


def nearest_steps(
    spec: Any, wanted: Sequence[float], timesteps: Sequence[float], num_train_timesteps: int = 1000
) -> frozenset[int]:
    """The steps whose t is nearest to the `wanted` ones, the first of several with the same t.

    Args:
        spec: What wants them, for the error.
        wanted (sequence of `float`): Values of the scheduler's t.
        timesteps (sequence of `float`): The scheduler's t at every step of the run.
        num_train_timesteps (`int`): Timesteps lie in `0 .. num_train_timesteps`.

    Raises:
        ValueError: if a wanted one is outside that range.
    """
    impossible = [t for t in wanted if not 0 <= t <= num_train_timesteps]
    if impossible:
        raise ValueError(
            f"{type(spec).__name__}: expected `timesteps` within 0..{num_train_timesteps}, got {impossible};"
            f" the run goes from t={timesteps[0]:g} to t={timesteps[-1]:g}."
        )
    return frozenset(nearest(timesteps, t) for t in wanted)


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """At which steps of a run; every step unless one of the three is given.

    Args:
        steps (`int` or sequence of `int`, *optional*): 0-based indices of denoiser calls; negative ones count from
            the end.
        timesteps (`float` or sequence of `float`, *optional*): Values of the scheduler's t; each selects the step
            whose t is nearest (the first of several with the same t).
        every (`int`, *optional*): A stride: steps 0, `every`, 2 · `every`, …

    Raises:
        ValueError: if more than one of the three is given, or a value is not possible.
    """

    steps: int | Sequence[int] | None = None
    timesteps: float | Sequence[float] | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "timesteps", "every") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Expected one of `steps`, `timesteps` and `every`, got {' and '.join(given)}.")
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise ValueError(f"Expected `every` as an integer of at least 1, got {self.every!r}.")
        for name in ("steps", "timesteps"):
            value = getattr(self, name)
            if value is None:
                continue
            values = tuple(value) if isinstance(value, Iterable) else (value,)
            if not values:
                raise ValueError(f"Expected at least one value in `{name}`, got none.")
            if name == "steps" and any(int(step) != step for step in values):
                raise ValueError(f"Expected whole step indices in `steps`, got {values}.")
            object.__setattr__(self, name, values)

    def select_steps(self, timesteps: Sequence[float], num_train_timesteps: int = 1000) -> frozenset[int]:
        """The step indices that this spec means.

        Args:
            timesteps (sequence of `float`): The scheduler's t at every step of the run.
            num_train_timesteps (`int`): Timesteps lie in `0 .. num_train_timesteps`.

        Raises:
            ValueError: if a requested step or timestep does not exist in the run.
        """
        count = len(timesteps)
        if isinstance(self.steps, Sequence):
            outside = [step for step in self.steps if not -count <= step < count]
            if outside:
                raise ValueError(
                    f"{type(self).__name__}: expected `steps` within 0..{count - 1} (or negative, from the end), got"
                    f" {outside}; the run has {count} steps."
                )
            return frozenset(int(step) % count for step in self.steps)
        if isinstance(self.timesteps, Sequence):
            return nearest_steps(self, self.timesteps, timesteps, num_train_timesteps)
        return frozenset(range(0, count, self.every or 1))

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data, with its class name under `"type"`."""
        return {"type": type(self).__name__, **{field.name: getattr(self, field.name) for field in fields(self)}}
