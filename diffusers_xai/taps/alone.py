"""A network that is called beside a run: whose hooks are silent, and which keeps nothing of the call."""

import copy
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FunctionType, MethodType, NoneType
from typing import Any

import torch
from torch import nn


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_modules")
# The last two load weights and put them away, which they may go on doing; they may hold copies of all weights.
_NOT_COPIED = frozenset([*_HOOKS, *_TABLES, "_hf_hook", "_diffusers_hook"])
_ATOMS = frozenset([NoneType, bool, int, float, complex, str, bytes, type, FunctionType, MethodType])


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Random numbers that are drawn inside the context are drawn again behind it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """Takes hooks off a network's modules, puts them in evaluation and attention on PyTorch's own functions.

    Buffers, counters, caches and whatever else its modules and attention processors hold are copies meanwhile, see
    [`copied`]; parameters are not. PyTorch's own hooks stay: they gather weights that are spread over devices.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before = [(module, dict(vars(module))) for module in network.modules()]
    active, copies = _AttentionBackendRegistry._active_backend, _Copies()
    try:
        for module, state in before:
            own = {name: copies.of(value) for name, value in state.items() if name not in _NOT_COPIED}
            own |= {name: dict(state[name]) for name in _TABLES}
            own |= {name: _of_torch(state[name]) for name in _HOOKS}
            vars(module).update(own, training=False)
            if own.get("_attention_backend") is not None:  # of a processor that is a module
                vars(module)["_attention_backend"] = None
            processor: Any = own.get("processor")
            if getattr(processor, "_attention_backend", None) is not None:
                processor._attention_backend = None
        if active is not AttentionBackendName.NATIVE:
            _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)
        yield
    finally:
        if active is not AttentionBackendName.NATIVE:
            _AttentionBackendRegistry.set_active_backend(active)
        for module, state in before:
            for name in vars(module).keys() - state.keys():
                del vars(module)[name]
            vars(module).update(state)


def _of_torch(hooks: Mapping[int, Any]) -> OrderedDict[int, Any]:
    return OrderedDict((key, hook) for key, hook in hooks.items() if str(hook.__module__).startswith("torch."))


def copied(value: Any) -> Any:
    """A copy of tensors, Python's containers, classes derived from them, and plain objects in it.

    Shared are modules and parameters, what a class keeps in `__slots__`, tuples of a class that is no namedtuple, and
    what cannot be copied, such as locks.
    """
    return _Copies().of(value)


class _Copies:
    """Copies of what belongs together, each made once."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # holding the original keeps its identity from being given away

    def of(self, value: Any) -> Any:
        """A copy, or the value itself if it is not known how to copy it."""
        if type(value) in _ATOMS:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = value, value  # also where it holds itself
            with suppress(Exception):  # of any class: locks, frozen configurations
                self._made[id(value)] = value, self._copy(value)
        return self._made[id(value)][1]

    def _copy(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            return value if isinstance(value, nn.Parameter) else value.detach().clone()
        if isinstance(value, torch.Generator):
            return value.clone_state()
        if isinstance(value, nn.Module) or callable(value) and not _is_processor(value):
            return value
        if kind in (set, tuple):
            return kind(map(self.of, value))
        if isinstance(value, tuple):
            return kind._make(map(self.of, value)) if hasattr(value, "_fields") else value
        made = copy.copy(value)
        # By the methods of Python's own classes: those of `BaseOutput` refuse.
        if isinstance(value, list):
            list.__setitem__(made, slice(None), [self.of(item) for item in value])
        if isinstance(value, deque):
            for place, item in enumerate(value):
                deque.__setitem__(made, place, self.of(item))
        if isinstance(value, dict):
            dict.update(made, {key: self.of(item) for key, item in value.items()})
        if hasattr(made, "__dict__"):
            vars(made).update((name, self.of(item)) for name, item in vars(value).items())
        return made


def _is_processor(value: Any) -> bool:
    """Whether it is an object of a class that makes it callable, such as an attention processor."""
    return hasattr(value, "__dict__") and not isinstance(value, (type, FunctionType, MethodType, partial))
