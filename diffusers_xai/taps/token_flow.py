"""Follows the tokens of text encoders through what is computed of them; nothing is matched by value."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


# Labels of elements that come from no token, such as zeros behind a text, and from more than can be told.
NOTHING, MIXED = -1, -2

# Operators that put elements elsewhere: the same operator puts their labels there.
_MOVES = frozenset(
    [
        "cat", "stack", "index", "_unsafe_index", "index_select", "gather", "take", "masked_select", "masked_fill",
        "repeat", "repeat_interleave", "roll", "flip", "where", "constant_pad_nd", "slice_scatter", "select_scatter",
        "index_put", "scatter", "index_copy", "index_put_", "scatter_", "index_copy_", "masked_fill_",
    ]
)  # fmt: skip
_COPIES = frozenset(["clone", "_to_copy", "copy", "native_layer_norm", "_fused_rms_norm", "native_dropout"])
_FILLS = frozenset(["zero_", "fill_", "normal_", "uniform_"])
# Operators that sum over a row's channels, and which of their arguments holds the rows.
_OF_ROWS = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1}
_OVER_ROWS = frozenset(["mean", "sum", "var", "std", "linalg_vector_norm", "norm", "amax", "amin"])


class TokenFlow(TorchDispatchMode):
    """Labels beside the elements of tensors, which go where the elements go while the mode is on.

    What is computed of an element by itself, or of a row's channels, keeps the label; where elements of several labels
    meet in one, they are `MIXED`. Nothing that is computed changes.
    """

    def __init__(self) -> None:
        super().__init__()
        # By storage, so that views need nothing; what is marked gets labels of its own when it is used.
        self._held: dict[int, tuple[StorageWeakRef, torch.Tensor | Callable[[], torch.Tensor]]] = {}
        self._thread: int | None = None

    def mark(self, tensor: torch.Tensor, labels: torch.Tensor) -> None:
        """Gives a tensor labels (int32), of a shape that is expanded to its own."""
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        length, device = _length(tensor), tensor.device

        def beside() -> torch.Tensor:
            held = torch.full((length,), NOTHING, dtype=torch.int32, device=device)
            held.as_strided(size, stride, offset).copy_(labels)
            return held

        self._hold(tensor, beside)

    def labels(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The labels of a tensor's elements, of its shape; `None` if it holds nothing that was followed."""
        storage = _storage(tensor)
        entry = None if storage is None else self._held.get(storage._cdata)
        if storage is None or entry is None or entry[0].expired():
            return None
        held = entry[1]
        if not isinstance(held, torch.Tensor):
            held = held()
            self._held[storage._cdata] = entry[0], held
        if len(held) != _length(tensor):  # seen as another type
            return None
        return held.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def start(self) -> None:
        """Follows what this thread computes from now on."""
        if self._thread is None:
            self._thread = threading.get_ident()
            self.__enter__()

    def stop(self) -> None:
        """Follows no more."""
        if self._thread == threading.get_ident():
            self._thread = None
            self.__exit__(None, None, None)

    def prune(self) -> None:
        """Forgets the labels of tensors that are gone."""
        for key in [key for key, (reference, _) in self._held.items() if reference.expired()]:
            del self._held[key]

    def clear(self) -> None:
        """Forgets all labels."""
        self._held.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Calls `func` as it would be called, and moves labels."""
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # only there operators come whole that are made of others
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = func(*args, **kwargs)
        if any(self.labels(tensor) is not None for tensor in _tensors((args, kwargs))):
            with torch.no_grad():
                self._follow(func, args, kwargs, output)
        return output

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        name = func.overloadpacket.__name__
        if func._schema.is_mutable:
            return self._write(func, name, args, kwargs)
        made = [tensor for tensor in _tensors(output) if self.labels(tensor) is None]  # no views
        if name.endswith("_like") or name.startswith("new_") or not made:
            return None
        if name in _MOVES:
            return self._set(made[0], self._moved(func, name, args, kwargs))
        for tensor in made:
            self._set(tensor, self._computed(func, name, args, kwargs, tensor))
        return None

    def _write(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Moves labels where an operator writes into a tensor that is there."""
        target = kwargs.get("out", args[0])
        if target is not args[0] or not isinstance(target, torch.Tensor):
            for tensor in _tensors(target):
                self._set(tensor, torch.full_like(tensor, MIXED, dtype=torch.int32))
            return
        before = self.labels(target)
        if name in _FILLS:
            after = torch.full_like(target, NOTHING, dtype=torch.int32)
        elif name == "copy_":
            source = self.labels(args[1])
            after = torch.full_like(target, NOTHING, dtype=torch.int32) if source is None else source
        elif name in _MOVES:
            after = self._moved(func, name, args, kwargs)
        else:
            after = self._computed(func, name, args, kwargs, target)
        if before is None:
            self._hold(target, torch.full((_length(target),), NOTHING, dtype=torch.int32, device=target.device))
            before = self.labels(target)
        if before is not None:
            before.copy_(after)

    def _moved(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """The labels after an operator of `_MOVES`: what it does, done with labels."""

        def label(value: Any) -> Any:
            if isinstance(value, float):
                return NOTHING
            if not isinstance(value, torch.Tensor):
                return value
            held = self.labels(value)
            if held is not None:
                return held.clone()
            is_index = value.dtype in (torch.bool, torch.int64, torch.int32)
            return value if is_index else torch.full_like(value, NOTHING, dtype=torch.int32)

        if name == "constant_pad_nd":
            return func(label(args[0]), args[1], NOTHING)
        if name in ("masked_fill", "masked_fill_"):
            return label(args[0]).masked_fill(args[1], NOTHING)
        if name in ("scatter", "scatter_") and func._overloadname != "src":
            return label(args[0]).scatter(*args[1:3], NOTHING if func._overloadname == "value" else MIXED)
        if name in ("index_put", "index_put_") and len(args) > 3 and args[3]:  # it adds up
            return func(label(args[0]), args[1], torch.tensor(MIXED, dtype=torch.int32, device=args[0].device))
        return func(*tree_map(label, args), **tree_map(label, kwargs))

    def _computed(self, func: Any, name: str, args: tuple, kwargs: dict[str, Any], made: torch.Tensor) -> torch.Tensor:
        """The labels of a tensor that an operator computed, or computes in place."""
        given = [held for held in (self.labels(tensor) for tensor in _tensors((args, kwargs))) if held is not None]
        mixed = torch.full(made.shape, MIXED, dtype=torch.int32, device=made.device)
        if name in _OF_ROWS:
            rows = self.labels(args[_OF_ROWS[name]])
            return mixed if rows is None or len(given) > 1 else _of_rows(rows, mixed)
        if name in _OVER_ROWS:
            return _of_rows(given[0], mixed)
        if name in _COPIES:
            return given[0].clone() if given[0].shape == made.shape else mixed
        if torch.Tag.pointwise not in func.tags:
            return mixed
        found = torch.full_like(mixed, NOTHING)
        for held in given:
            meet = (found != held) & (held != NOTHING) & (found != NOTHING)
            found = torch.where(meet, MIXED, torch.where(held == NOTHING, found, held))
        return found

    def _set(self, tensor: torch.Tensor, labels: torch.Tensor) -> None:
        self.mark(tensor, labels.to(torch.int32))

    def _hold(self, tensor: torch.Tensor, labels: torch.Tensor | Callable[[], torch.Tensor]) -> None:
        storage = _storage(tensor)
        if storage is None:
            return
        self.prune()
        self._held[storage._cdata] = StorageWeakRef(storage), labels


def _of_rows(rows: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Labels of what is computed of every row (…, channel), if all channels of each have the same."""
    first = rows[..., :1]
    of_row = torch.where((rows == first).all(dim=-1, keepdim=True), first, MIXED)
    return of_row.expand(made.shape) if made.shape[:-1] == of_row.shape[:-1] else made


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """Its storage; `None` for tensors without one (sparse, without data)."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return None
    return tensor.untyped_storage()


def _length(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def token_sets(labels: torch.Tensor) -> list[Sequence[int]] | None:
    """The labels in every row (row, channel), each once; `None` if some are `MIXED`."""
    if bool((labels == MIXED).any()):
        return None
    first = labels[:, :1]
    same = (labels == first).all(dim=-1).tolist()
    return [
        [label for label in (row[:1] if uniform else row.unique()).tolist() if label != NOTHING]
        for row, uniform in zip(labels.cpu(), same, strict=True)
    ]
