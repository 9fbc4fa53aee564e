"""What calls of a denoiser beside the run need: its arguments, every row repeated, and random numbers of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall


# Positions of tokens, which all rows share, however many there are.
_SHARED = (
    "img_ids", "txt_ids", "image_rotary_emb", "rotary_embedding", "freqs_cis", "visual_rope_pos", "text_rope_pos",
)  # fmt: skip
# Embeddings of several layers of a text encoder, (layer, row, …).
_ROWS_SECOND = ("encoder_hidden_states_llama3",)


def repeat_rows(batch: torch.Tensor, branches: int, samples: int, copies: int) -> torch.Tensor:
    """(branch · sample · …, …) -> (branch · copy · sample · …, …); what follows a sample are its frames."""
    if copies == 1:
        return batch.clone()  # tensors of inference mode can take part only as copies
    rows = batch.unflatten(0, (branches, 1, samples, -1))
    return rows.expand(-1, copies, *rows.shape[2:]).flatten(0, 3)


def repeated(
    call: DenoiserCall,
    samples: int,
    copies: int,
    frames: int | None = None,
    replaced: Mapping[int, torch.Tensor] | None = None,
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `call` for a batch whose images are repeated `copies` times.

    Args:
        call ([`DenoiserCall`]): A call of `rows` rows.
        samples (`int`): Number of images in it; the rest of its rows are guidance branches.
        copies (`int`): How often every image comes.
        frames (`int`, *optional*): Frames of an image; some arguments hold a row for each.
        replaced (mapping, *optional*): Repeated tensors that take the place of arguments, by the id of those.
    """
    branches = call.rows // samples
    order = repeat_rows(torch.arange(call.rows), branches, samples, copies).tolist()
    every = _Rows(call.rows, frames, lambda batch: repeat_rows(batch, branches, samples, copies), order, replaced)
    return every.of(call)


def selected(call: DenoiserCall, rows: Sequence[int], frames: int | None = None) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `call` for some of its rows, see `repeated`."""
    index = torch.as_tensor(rows)
    every = _Rows(call.rows, frames, lambda batch: batch.unflatten(0, (call.rows, -1))[index].flatten(0, 1), rows)
    return every.of(call)


@dataclass(frozen=True)
class _Rows:
    """How arguments of a call are made of its own for other rows.

    Attributes:
        count (`int`): Rows of the call.
        frames (`int`, *optional*): Frames of an image; some arguments hold a row for each.
        change (`Callable`): Makes the other rows of a tensor.
        order (sequence of `int`): Which rows they are.
        replaced (mapping, *optional*): Tensors that take the place of arguments, by the id of those.
        lists_are_rows (`bool`): Whether a list with as many items as the call has rows holds these.
    """

    count: int
    frames: int | None
    change: Callable[[torch.Tensor], torch.Tensor]
    order: Sequence[int]
    replaced: Mapping[int, torch.Tensor] | None = None
    lists_are_rows: bool = False

    def of(self, call: DenoiserCall) -> tuple[tuple, dict[str, Any]]:
        """The arguments of the call."""
        if isinstance(call.given_sample, list):  # then all lists of this length hold a row each
            return replace(self, lists_are_rows=True)._of(call)
        return self._of(call)

    def _of(self, call: DenoiserCall) -> tuple[tuple, dict[str, Any]]:
        names = list(call.arguments)
        args = tuple(self._named(names[i] if i < len(names) else "", value) for i, value in enumerate(call.args))
        return args, self._changed(call.kwargs)

    def _named(self, name: str, value: Any) -> Any:
        if name in _ROWS_SECOND:
            return self.change(value.transpose(0, 1)).transpose(0, 1)
        return value if name in _SHARED else self._changed(value)

    def _changed(self, value: Any) -> Any:
        if self.replaced is not None and id(value) in self.replaced:
            return self.replaced[id(value)]
        if isinstance(value, torch.Tensor):
            count = value.shape[0] if value.ndim else 0
            is_batched = count == self.count or (self.frames is not None and count == self.count * self.frames)
            return self.change(value) if is_batched else value.clone()
        if isinstance(value, dict):
            return {name: self._named(name, item) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            of_rows = isinstance(value, list) and len(value) == self.count
            if of_rows and (self.lists_are_rows or not _hold_batches(value, self.count)):
                return [value[i] for i in self.order]  # a row each
            return type(value)(self._changed(item) for item in value)
        return value


def _hold_batches(values: Any, rows: int) -> bool:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return bool(tensors) and all(tensor.ndim > 0 and tensor.shape[0] == rows for tensor in tensors)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
