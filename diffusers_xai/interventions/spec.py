"""The base of everything that can be changed during a run."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from diffusers_xai.taps.run import Run
from diffusers_xai.taps.steps import StepSpec


@dataclass(frozen=True, kw_only=True)
class EditSpec(StepSpec):
    """What to change, and at which steps (see [`StepSpec`])."""

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Enters on `stack` the taps that change the run.

        Args:
            run (`Run`): The run.
            stack (`ExitStack`): Taps are left when it is.
            samples (sequence of `int`, *optional*): Indices of the images that are changed; all if `None`.
        """
        raise NotImplementedError


# Edits of all images, or one sequence of them per image.
Edits = Sequence[EditSpec] | Sequence[Sequence[EditSpec]]


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
            raise TypeError(f"Expected what to change, such as `LabelSwitch(at=500, to=3)`, got {edit!r}.")
    if len({isinstance(entry, Sequence) for entry in edits}) > 1:
        raise TypeError("Expected edits of all images, or one sequence of edits per image, got a mixture.")
    return pairs
