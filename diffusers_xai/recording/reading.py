"""How the weights of one attention are read: which of them, and what their axes mean."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffusers_xai.denoisers.labelling import POSITIONS, Labelling
from diffusers_xai.recording.attention import Relation
from diffusers_xai.taps.attention import AttentionCall


# Queries in one part: at least so many, and more where their weights are small.
_QUERIES_AT_ONCE, _BYTES_AT_ONCE = 256, 8 * 2**20


@dataclass(frozen=True)
class Reading:
    """What is taken from every attention of one form; found once, as it takes longer than small weights themselves.

    Attributes:
        queries (sequence of `slice` or `torch.Tensor`): Indices of the queries, in parts where less is kept than
            computed: all weights of a 64 px layer at once are 67 MB per head.
        keys (`slice`): Indices of the keys.
        heads (`list[int]` or `None`): Indices of the heads; all if `None`.
        averaged (`int`): Over how many queries the mean is taken; 0 where each is kept.
        sizes (`tuple[int, ...]`): Into which the axes (row, head, query, key) fall.
        order (`tuple[int, ...]`): Which of these becomes the row and each of the dims.
        dims (`tuple[str, ...]`): Names of the dims behind the row.
        coords (`dict`): Coordinates on them.
    """

    queries: Sequence[slice | torch.Tensor]
    keys: slice
    heads: list[int] | None
    averaged: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    dims: tuple[str, ...]
    coords: dict[str, Any]

    def values(self, call: AttentionCall, heads: int, device: str | None = None) -> torch.Tensor:
        """The weights (row, *dims); `heads` and `device` as of [`AttentionCall.weights`]."""

        def part(queries: slice | torch.Tensor) -> torch.Tensor:
            weights = call.weights(queries, heads, device)[..., self.keys]
            return weights if self.heads is None else weights[:, self.heads]

        if self.averaged:
            weights = functools.reduce(torch.add, (part(queries).sum(dim=-2) for queries in self.queries))
            weights = weights / self.averaged
        else:
            parts = [part(queries) for queries in self.queries]
            weights = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
        return weights.view(self.sizes).permute(self.order)


def reading_of(
    labelling: Labelling,
    call: AttentionCall,
    relation: Relation,
    heads: int,
    *,
    from_text: bool = False,
    mean: bool = False,
    pixels: Sequence[tuple[int, int]] | None = None,
    chosen: list[int] | None = None,
) -> Reading:
    """How a relation in an attention is read.

    Args:
        labelling ([`Labelling`]): Of the denoiser's call.
        call ([`AttentionCall`]): The attention, or one of its form.
        relation ([`Relation`]): What of it is wanted.
        heads (`int`): Heads of the layer.
        from_text (`bool`): Whether it is text that looks.
        mean (`bool`): Whether the mean over the queries is wanted.
        pixels (sequence of `(row, column)`, *optional*): The pixels of the sample whose queries are wanted.
        chosen (`list[int]`, *optional*): The heads that are wanted.

    Raises:
        ValueError: for a head that is not there, or pixels of queries that are not known to lie on an image.
    """
    index, grid, keys = relation.queries.index, relation.queries.grid, relation.keys
    rows, available = call.rows_and_heads(heads)
    if chosen is not None and max(chosen) >= available:
        raise ValueError(f"AttentionWeights: expected `heads` in 0..{available - 1}, got {chosen}.")
    coords: dict[str, Any] = {} if chosen is None else {"head": chosen}
    count, averages = index.stop - index.start, mean and pixels is None
    at_once = max(_QUERIES_AT_ONCE, _BYTES_AT_ONCE // (4 * rows * available * call.shape[2]))
    if not averages and keys.index == slice(0, call.shape[2]) and chosen is None:
        at_once = count  # all that is computed is kept
    queries: Sequence[slice | torch.Tensor] = [
        slice(start, min(start + at_once, index.stop)) for start in range(index.start, index.stop, at_once)
    ]
    looking: dict[str, int] = {"query": count}
    if pixels is not None:
        if grid is None:
            raise ValueError(
                "AttentionWeights: expected queries that are known to lie on an image for `pixels`, got others."
            )
        (down, right), (height, width) = torch.tensor(pixels).T, labelling.positions[-2:]
        queries = (index.start + down * grid[-2] // height * grid[-1] + right * grid[-1] // width).split(at_once)
        coords |= {"row": ("pixel", np.array(down)), "column": ("pixel", np.array(right))}
        looking = {"pixel": len(pixels)}
    elif mean:
        looking = {}
    elif from_text:
        looking = {"token": count}
    elif grid is not None and keys.grid is None:
        looking = dict(zip(POSITIONS[len(grid)], grid, strict=True))
    elif grid is not None and len(grid) == 2:
        cells = np.indices(grid).reshape(2, -1)
        coords |= {"row": ("query", cells[0]), "column": ("query", cells[1])}
    seen = {"token": keys.index.stop - keys.index.start}
    if keys.grid is not None:
        seen = dict(zip(POSITIONS[len(keys.grid)], keys.grid, strict=True))
    dims = ["head", *seen, *looking] if from_text else ["head", *looking, *seen]
    batch = {"row": rows}
    may_be_rows = labelling.grid is None or labelling.frames != 1  # elsewhere a single frame is in the sequence
    if labelling.frames and may_be_rows and rows == labelling.rows * labelling.frames:
        batch = {"row": labelling.rows, "frame": labelling.frames}
        dims.insert(dims.index("height") if "height" in dims else len(dims) - 1, "frame")
    axes = {**batch, "head": available if chosen is None else len(chosen), **looking, **seen}
    order = tuple(list(axes).index(dim) for dim in ("row", *dims))
    averaged = count if averages else 0
    return Reading(queries, keys.index, chosen, averaged, tuple(axes.values()), order, tuple(dims), coords)
