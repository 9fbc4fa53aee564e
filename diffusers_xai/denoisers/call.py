"""One call of a denoiser: where its sample, its condition and its rows are, whatever the class calls them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
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
        forward: Any = type(self.module).forward
        return _parameters(forward)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments by name, as far as the signature of `forward` names them."""
        return {**dict(zip(self._parameters, self.args, strict=False)), **self.kwargs}

    @cached_property
    def sample_name(self) -> str:
        """The keyword of the sample: the first parameter of `forward`."""
        first = next(iter(self._parameters), "sample")
        return first if self.args or first in self.kwargs else next(iter(self.kwargs))

    @cached_property
    def sample(self) -> torch.Tensor:
        """The sample (row, …); of families that pass a list of rows, these stacked, images without a frame."""
        value = self.args[0] if self.args else self.kwargs[self.sample_name]
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
        given = self.args[0] if self.args else self.kwargs[self.sample_name]
        value: Any = sample
        if isinstance(given, (list, tuple)):
            value = [row.reshape(one.shape) for row, one in zip(sample, _cycled(given, len(sample)), strict=True)]
        if self.args:
            return (value, *self.args[1:]), self.kwargs
        return self.args, {**self.kwargs, self.sample_name: value}


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters of a class's `forward` in their order, without `self`."""
    parameters = inspect.signature(forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)[1:]


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
