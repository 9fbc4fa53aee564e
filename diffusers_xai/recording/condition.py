"""The tokens of text in one call of a denoiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_xai.denoisers import DenoiserCall


# What one key of a layer is made of: none, one, or one each of several encoders, as indices of known tokens.
Key = Sequence[int]


@dataclass(frozen=True)
class Condition:
    """The tokens of text in one denoiser call.

    Attributes:
        rows (`int`): How many rows the call has.
        sequences (`dict`): Argument -> its keys by row, or `None` where they are mixed on their way.
        attended (`dict`): Argument -> by row how many keys are no padding, if padding stands behind and is known.
        pads (`bool`): Whether the network fills a text up to a multiple of 32.
        order (`tuple[str, ...]`): The arguments whose tokens are the first keys, if the network's layout tells them.
    """

    rows: int
    sequences: dict[str, list[list[Key]] | None]
    attended: dict[str, list[int]]
    pads: bool
    order: tuple[str, ...] = ()

    def of_keys(self, keys: int) -> list[list[Key]] | None:
        """The keys by row of a layer that looks at `keys` of them; `None` if they cannot be told."""
        sequences = [rows for rows in self.sequences.values() if rows is not None]
        if not sequences or len(sequences) < len(self.sequences):
            return None
        named = [self.sequences.get(name) or [] for name in self.order]
        joined = [[key for row in rows for key in row] for rows in zip(*(named or sequences), strict=False)]
        if named:
            found = [joined] if joined and len(joined[0]) <= keys else []
        else:
            found = [rows for rows in [*sequences, joined] if len(rows[0]) == keys]
        if not found and not named and len(sequences) == 1:
            found = self._of_network(keys, *self.sequences)
        if not found or any(rows != found[0] for rows in found):
            return None
        return [[*row[:keys], *([()] * (keys - len(row)))] for row in found[0]]  # texts may have lengths of their own

    def _of_network(self, keys: int, argument: str) -> list[list[list[Key]]]:
        """The keys where the network itself fills texts up behind them, or leaves out padding there."""
        rows, attended = self.sequences[argument] or [], self.attended[argument]
        fills_up = self.pads and keys % 32 == 0 and max(-(-len(row) // 32) * 32 for row in rows) == keys
        if fills_up:
            return [rows]
        is_left_out = bool(attended) and max(attended) == keys
        return [[row[:count] for row, count in zip(rows, attended, strict=True)]] if is_left_out else []

    def row(self, index: int, count: int) -> int | None:
        """Which of `count` rows of the text belongs to a row of the call: they may be repeated for frames."""
        return index * count // self.rows if count == 1 or count % self.rows == 0 else None


def rows_of(value: Any, rows: int, labels: Callable[[torch.Tensor], torch.Tensor | None]) -> list[torch.Tensor] | None:
    """The rows (token, channel) of an argument of a denoiser; `None` of what is no sequence of tokens.

    Args:
        value (any): The argument.
        rows (`int`): How many rows the call has.
        labels (`Callable`): Gives which tokens a tensor's elements are made of, if they are known.
    """
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, torch.Tensor) for part in value):
        return list(value) if value[0].ndim == 2 else rows_of(value[0], rows, labels)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim not in (3, 4):
        return None
    if value.ndim == 4:  # layers of one encoder, in front of the rows or behind them
        is_in_front = value.shape[1] == rows and (value.shape[0] != rows or _is_alike(labels(value)))
        value = value[0] if is_in_front else value[:, 0]
    return list(value)


def _is_alike(labels: torch.Tensor | None) -> bool:
    """Whether all along the first axis is made of the same tokens, as the layers of an encoder are."""
    return labels is not None and bool((labels == labels[:1]).all())


def attended_of(call: DenoiserCall, lengths: list[int]) -> list[int]:
    """By row how many tokens a mask in the call keeps; empty without a mask that keeps the first ones."""
    masks = [
        value.bool()
        for value in call.arguments.values()
        if isinstance(value, torch.Tensor)
        and not value.is_floating_point()
        and value.shape == (len(lengths), lengths[0])
    ]
    if len(masks) != 1 or not torch.equal(masks[0], masks[0].long().cummin(dim=1).values.bool()):
        return []
    return masks[0].sum(dim=1).tolist()
