"""Label switch: another label from some step on."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.labels import encode_label
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.edits import EditSpec, first_switched_step


@dataclass(frozen=True, kw_only=True)
class LabelSwitch(EditSpec):
    """Conditions on another label from a step on. Of several switches in a run, the latest one holds.

    Under guidance the conditional branch is switched, and the unconditional one stays.

    Source: thesis section 5.3.2, fig. 5.17.

    Args:
        to (`int` or `dict[str, bool]`): The new label, as in `class_labels`.
        from_step (`int`, *optional*): Index of the first step with the new label: 0 switches the whole run, the number
            of steps nothing.
        from_timestep (`float`, *optional*): Instead of `from_step`, a value of the scheduler's t: the step
            whose t is nearest (the first of several) is the first one with the new label.

    Raises:
        TypeError: for a label that is neither an integer nor a dict.
        ValueError: if not exactly one of `from_step` and `from_timestep` is given; when the run is attached, if
            the model is unconditional or has no such label; before sampling starts, if there is no such step.
    """

    to: int | Mapping[str, bool]
    from_step: int | None = None
    from_timestep: float | None = None

    def __post_init__(self) -> None:
        first_switched_step(self, None)
        if not isinstance(self.to, Mapping) and not _is_index(self.to):
            raise TypeError(f"Expected `to` as an integer or a dict of attributes, got {self.to!r}.")
        object.__setattr__(self, "to", dict(self.to) if isinstance(self.to, Mapping) else int(self.to))
        object.__setattr__(self, "from_step", None if self.from_step is None else int(self.from_step))

    def attach(self, run: Run, stack: ExitStack, samples: Sequence[int] | None = None) -> None:
        """Replaces the labels in the denoiser's calls."""
        config, denoiser = run.denoiser.config, run.denoiser.module
        classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
        if classes is None or "class_labels" not in inspect.signature(denoiser.forward).parameters:
            raise ValueError(f"LabelSwitch: expected a network with class labels, got {run.denoiser.name}.")
        null = config.get("null_class_label", classes if run.denoiser.name.startswith("DiT") else None)
        label = encode_label(self.to, classes, null, config.get("class_attributes"))

        def replaced(labels: Any) -> torch.Tensor:
            if labels is None:
                raise ValueError("LabelSwitch: expected `class_labels` in the denoiser's call, got none.")
            rows = [
                row
                for row, (branch, sample) in enumerate(run.rows())
                if branch == "cond" and (samples is None or sample in samples)
            ]
            labels = labels.clone()
            labels[rows] = label
            return labels

        def switch(first: int, call: DenoiserCall) -> DenoiserCall | None:
            if run.step < first:
                return None
            return call.with_argument("class_labels", replaced(call.arguments.get("class_labels")))

        def start() -> None:
            first = first_switched_step(self, run)
            run.on_call(partial(switch, first), order=first)  # the latest switch has the last word

        run.on_start(start)

    def to_dict(self) -> dict[str, Any]:
        """The edit as JSON-able data."""
        return {"type": "LabelSwitch", "to": self.to, "from_step": self.from_step, "from_timestep": self.from_timestep}


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
