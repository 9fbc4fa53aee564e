"""Taps on module calls: read or change what a module receives and returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def first_tensor(output: Any) -> torch.Tensor:
    """The main tensor of a module's output: the tensor itself, or the first one of a tuple, list or output class.

    Raises:
        TypeError: if there is no tensor in `output`.
    """
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise TypeError(f"Expected a module output that holds a tensor, got {type(output).__name__}.")


def with_first_tensor(output: Any, tensor: torch.Tensor, skips: bool = True) -> Any:
    """`output` with its main tensor replaced, in the same container type.

    Where a nested tuple (a block's skips) holds the very same tensor, it is replaced there too, unless `skips` is
    false: a down block may return `(hidden, skips)` with `hidden is skips[-1]`, and both carry an edit.
    """
    original = first_tensor(output)

    def replace(value: Any, nested: bool) -> Any:
        if value is original:
            return tensor
        if nested and isinstance(value, dict):
            return type(value)(**{key: replace(item, skips) for key, item in value.items()})
        if nested and isinstance(value, (tuple, list)):
            return type(value)(replace(item, skips) for item in value)
        return value

    return replace(output, True)


@contextmanager
def tap_output(module: nn.Module, callback: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Calls `callback` with the main tensor of every output of `module`. The output is not changed."""

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        callback(first_tensor(output))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edit_output(module: nn.Module, edit: Callable[[torch.Tensor], torch.Tensor], skips: bool = True) -> Iterator[None]:
    """Replaces the main tensor of every output of `module` by `edit(tensor)`, as [`with_first_tensor`] does."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        tensor = first_tensor(output)
        edited = edit(tensor)
        return output if edited is tensor else with_first_tensor(output, edited, skips)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def tap_call(module: nn.Module, before: Callable[[tuple, dict], tuple[tuple, dict] | None]) -> Iterator[None]:
    """Calls `before(args, kwargs)` ahead of every call of `module`; what it returns, if anything, replaces them."""
    handle = module.register_forward_pre_hook(lambda module, args, kwargs: before(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
