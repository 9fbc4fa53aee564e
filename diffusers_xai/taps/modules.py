"""Taps on module calls: read or change what a module receives and returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def modules_in(network: nn.Module) -> list[nn.Module]:
    """A network and all modules in it, each once, in no order: several times as quick as `network.modules()`."""
    found = {id(network): network}
    waiting = [network]
    while waiting:
        for module in waiting.pop()._modules.values():
            if module is not None and id(module) not in found:
                found[id(module)] = module
                waiting.append(module)
    return list(found.values())


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


def with_tensor(output: Any, original: torch.Tensor, tensor: torch.Tensor, skips: bool = True) -> Any:
    """`output` with one of its tensors replaced, in the same container type.

    Where a nested tuple (a block's skips) holds the very same tensor, it is replaced there too, unless `skips` is
    false: a down block may return `(hidden, skips)` with `hidden is skips[-1]`, and both carry an edit.
    """

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
def tap_output(
    module: nn.Module, callback: Callable[[Any], None], read: Callable[[Any], Any] = first_tensor
) -> Iterator[None]:
    """Calls `callback` with the main tensor, or what `read` takes, of every output. The output is not changed."""

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        callback(read(output))

    with module.register_forward_hook(hook):
        yield


@contextmanager
def edit_output(
    module: nn.Module,
    edit: Callable[[torch.Tensor], torch.Tensor],
    skips: bool = True,
    select: Callable[[Any], torch.Tensor] = first_tensor,
) -> Iterator[None]:
    """Replaces a tensor of every output of `module` by `edit(tensor)`, as [`with_tensor`] does.

    Args:
        module (`nn.Module`): The module.
        edit (`Callable`): Gives the new tensor.
        skips (`bool`): See `with_tensor`.
        select (`Callable`): Takes the tensor from the output; the main one by default.
    """

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        tensor = select(output)
        edited = edit(tensor)
        return output if edited is tensor else with_tensor(output, tensor, edited, skips)

    with module.register_forward_hook(hook):
        yield


@contextmanager
def tap_call(module: nn.Module, before: Callable[[tuple, dict], tuple[tuple, dict] | None]) -> Iterator[None]:
    """Calls `before(args, kwargs)` ahead of every call of `module`; what it returns, if anything, replaces them."""
    with module.register_forward_pre_hook(lambda module, args, kwargs: before(args, kwargs), with_kwargs=True):
        yield


@contextmanager
def tap_whole_call(module: nn.Module, after: Callable[[tuple, dict, Any], None]) -> Iterator[None]:
    """Calls `after(args, kwargs, output)` at the end of every call of `module`. The output is not changed."""

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        after(args, kwargs, output)

    with module.register_forward_hook(hook, with_kwargs=True):
        yield
