"""The base of everything that can be changed during a run."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.steps import nearest_steps


class EditSpec:
    """What to change. An edit is a frozen dataclass: data that can be applied to any number of runs."""

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Enters on `stack` the taps that change the run. Refuses here what cannot be changed.

        Args:
            run (`Run`): The run.
            stack (`ExitStack`): Taps are left when it is.
            samples (sequence of `int`, *optional*): Indices of the images that are changed; all if `None`.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The edit as short JSON-able data, with its class name under `"type"`."""
        raise NotImplementedError


# Edits of all images, or one sequence of them per image.
Edits = Sequence[EditSpec] | Sequence[Sequence[EditSpec]]


def count_samples(edits: Edits) -> int | None:
    """How many images there are edits for, one sequence for each; `None` if all images share the edits."""
    return len(edits) if edits and isinstance(edits[0], Sequence) else None


def check_samples(edits: Edits, samples: int) -> None:
    """Raises a ValueError if `edits` are given image by image, but not for as many as there are."""
    count = count_samples(edits)
    if count not in (None, samples):
        raise ValueError(f"Expected one sequence of edits for each of {samples} images, got {count} sequences.")


def edits_with_samples(edits: Edits) -> list[tuple[EditSpec, list[int] | None]]:
    """Every edit with the indices of the images that it changes, `None` for all.

    Raises:
        TypeError: if something is no edit, or edits of all images and of single ones are mixed.
    """
    pairs: list[tuple[Any, list[int] | None]] = []
    for index, entry in enumerate(edits):
        pairs += [(edit, [index]) for edit in entry] if isinstance(entry, Sequence) else [(entry, None)]
    for edit, _ in pairs:
        if not isinstance(edit, EditSpec):
            raise TypeError(f"Expected what to change, such as `LabelSwitch(from_step=500, to=3)`, got {edit!r}.")
    if len({isinstance(entry, Sequence) for entry in edits}) > 1:
        raise TypeError("Expected edits of all images, or one sequence of edits per image, got a mixture.")
    return pairs


def first_switched_step(edit: Any, run: Run | None) -> int:
    """The first step from which a switch with `from_step` and `from_timestep` holds.

    Args:
        edit: The switch.
        run (`Run`, *optional*): The run; `None` only checks the switch itself.

    Raises:
        ValueError: if not exactly one of the two is given, or there is no such step.
    """
    step, timestep, name = edit.from_step, edit.from_timestep, type(edit).__name__
    if (step is None) == (timestep is None):
        raise ValueError(f"{name}: expected one of `from_step` and `from_timestep`, got {step} and {timestep}.")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__") or step < 0):
        raise ValueError(f"{name}: expected `from_step` as a step index from 0 on, got {step!r}.")
    if run is None:
        return 0
    if timestep is not None:
        return min(nearest_steps(edit, [timestep], run.timesteps, run.num_train_timesteps))
    count = len(run.timesteps)
    if step is None or step > count:
        raise ValueError(f"{name}: expected `from_step` in 0..{count}, got {step}; the run has {count} steps.")
    return int(step)
