"""One call of a denoiser: where its sample, its condition and its rows are, whatever the class calls them."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn


# The denoiser's condition in a sequence of tokens, by the names that the families give it.
_TEXT = (
    "encoder_hidden_states", "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "cap_feats", "text_states",
    "clip_text_pooled", "context",
)  # fmt: skip
_TIMESTEP = ("timestep", "timesteps", "t")
_NUMBER = (torch.Tensor, int, float)


@dataclass(frozen=True)
class DenoiserCall:
    """The arguments of one call of a denoiser.

    Attributes:
        component (`str`): Name of the pipeline's component that was called.
        module (`nn.Module`): The component.
        args (`tuple`): Positional arguments.
        kwargs (`dict`): Arguments by name.
    """

    component: str
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]

    @property
    def _parameters(self) -> tuple[str, ...]:
        network: Any = type(self.module)
        return _parameters(network)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments by name, as far as the signature of `forward` names them."""
        return {**dict(zip(self._parameters, self.args, strict=False)), **self.kwargs}

    @cached_property
    def sample_name(self) -> str:
        """The keyword of the sample, see `given_sample`."""
        return self._sample_place[0]

    @property
    def given_sample(self) -> Any:
        """The sample as it is passed: the first argument of `forward` that holds rows and is no timestep."""
        name, index = self._sample_place
        return self.kwargs[name] if index is None else self.args[index]

    @cached_property
    def _sample_place(self) -> tuple[str, int | None]:
        """The sample's keyword, and where it stands if it was passed without."""
        names = [*self._parameters, *(f"{i}" for i in range(len(self._parameters), len(self.args)))]
        known = [name for name in names[len(self.args) :] if name in self.kwargs]
        places: list[tuple[str, int | None]] = [(names[i], i) for i in range(len(self.args))]
        places += [(name, None) for name in dict.fromkeys([*known, *self.kwargs])]
        values = [self.kwargs[name] if index is None else self.args[index] for name, index in places]
        found = (
            place
            for place, value in zip(places, values, strict=True)
            if place[0] not in _TIMESTEP and _holds_rows(value)
        )
        return next(found, places[0])

    @cached_property
    def sample(self) -> torch.Tensor:
        """The sample (row, …); of families that pass a list of rows, these stacked, images without a frame."""
        value = self.given_sample
        if not isinstance(value, (list, tuple)):
            return value
        rows = torch.stack(list(value))
        return rows.squeeze(2) if rows.ndim == 5 and rows.shape[2] == 1 else rows

    @property
    def rows(self) -> int:
        """How many rows the call has."""
        return self.sample.shape[0]

    @property
    def timestep(self) -> float | None:
        """The timestep as the network is given it, in its own unit; `None` if it is not one number."""
        named = [value for name, value in self.arguments.items() if name in _TIMESTEP]
        value = torch.as_tensor(named[0]).flatten() if named and isinstance(named[0], _NUMBER) else torch.empty(0)
        return float(value[0]) if value.numel() and bool((value == value[0]).all()) else None

    @cached_property
    def text_tokens(self) -> int | None:
        """Number of tokens of the condition in a sequence, if there is one."""
        for name in _TEXT:
            value = self.arguments.get(name)
            if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
                value = value[0][None]  # rows of their own lengths
            if isinstance(value, torch.Tensor) and value.ndim >= 3:
                return value.shape[-2]
        return None

    def with_argument(self, name: str, value: Any) -> "DenoiserCall":
        """The call with one argument replaced, where it stands."""
        position = self._parameters.index(name) if name in self._parameters else None
        if position is not None and position < len(self.args):
            args, kwargs = (*self.args[:position], value, *self.args[position + 1 :]), self.kwargs
        else:
            args, kwargs = self.args, {**self.kwargs, name: value}
        return DenoiserCall(self.component, self.module, args, kwargs)

    def with_sample(self, sample: torch.Tensor) -> tuple[tuple, dict[str, Any]]:
        """The arguments with another sample, in the form in which the family passes it."""
        given, (name, index) = self.given_sample, self._sample_place
        value: Any = sample
        if isinstance(given, (list, tuple)):
            value = [row.reshape(one.shape) for row, one in zip(sample, _cycled(given, len(sample)), strict=True)]
        if index is not None:
            return (*self.args[:index], value, *self.args[index + 1 :]), self.kwargs
        return self.args, {**self.kwargs, name: value}


def _holds_rows(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(isinstance(row, torch.Tensor) for row in value)
    return isinstance(value, torch.Tensor) and value.ndim > 0


@functools.cache
def _parameters(network: type) -> tuple[str, ...]:
    """The parameters of a class's `forward` in their order, without `self`.

    As the first class says that names them: a subclass may pass on whatever it is given.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forwards = [vars(base)["forward"] for base in network.__mro__ if "forward" in vars(base)]
    named = (
        tuple(
            parameter.name for parameter in inspect.signature(forward).parameters.values() if parameter.kind in kinds
        )
        for forward in forwards
    )
    return next((names[1:] for names in named if len(names) > 1), ())


def _cycled(rows: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    return [rows[i % len(rows)] for i in range(count)]


def prediction_of(output: Any) -> torch.Tensor:
    """The prediction (row, …) in what a denoiser returns: a tensor, an output class, or a list of rows.

    Raises:
        TypeError: if there is no tensor in it.
    """
    while not isinstance(output, torch.Tensor):
        values = list(output.values()) if isinstance(output, dict) else output
        if not isinstance(values, (list, tuple)) or not values:
            raise TypeError(f"Expected a denoiser that returns a tensor, got {type(output).__name__}.")
        if isinstance(output, list) and all(isinstance(row, torch.Tensor) for row in output):
            return torch.stack(output)
        output = values[0]
    return output
