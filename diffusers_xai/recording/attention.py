"""Which positions of an attention's queries and keys are image and which are text."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from diffusers_xai.denoisers.labelling import Labelling
from diffusers_xai.taps.attention import AttentionCall


RELATIONS = ("image_to_text", "image_to_image", "text_to_image")


@dataclass(frozen=True)
class Side:
    """The queries or keys of a relation.

    Attributes:
        index (`slice`): Where they stand in the sequence.
        grid (`tuple[int, ...]` or `None`): (height, width), (frame, height, width) or (frame,) of image positions.
    """

    index: slice
    grid: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Relation:
    """What looks at what.

    Attributes:
        queries (`Side`): What looks.
        keys (`Side`): What it looks at.
    """

    queries: Side
    keys: Side


def relations(labelling: Labelling, path: str, call: AttentionCall) -> dict[str, Relation]:
    """The relations between image and text in an attention; `""` for all to all where nothing is known.

    Args:
        labelling ([`Labelling`]): Of the denoiser's call.
        path (`str`): The attention layer.
        call ([`AttentionCall`]): One of its attentions.

    Returns:
        `dict[str, Relation]`: Of `RELATIONS`; empty for text that looks at text.

    Raises:
        ValueError: if the order of image and text is not known.
    """
    layout = labelling.layout
    batch, queries, keys = call.shape
    looks_from_image = labelling.looks_from_image(path)
    if looks_from_image is False or labelling.over_time(path, batch, queries) is not None:
        return {}
    if looks_from_image is None or layout is None or labelling.size is None:
        return {"": Relation(Side(slice(0, queries)), Side(slice(0, keys)))}
    if labelling.grid is None:
        return _of_levels(labelling, path, queries, keys)
    is_frame = len(labelling.grid) == 3 and batch == labelling.rows * (labelling.frames or 1) > labelling.rows
    grid = labelling.grid[1:] if is_frame else labelling.grid
    image = prod(grid)
    registers = labelling.registers_beside_image
    own = Side(slice(registers, registers + image), grid)
    if queries == registers + image:
        if keys == queries and not labelling.crosses(path, keys):
            return {"image_to_image": Relation(own, own)}
        return {"image_to_text": Relation(own, Side(slice(0, keys)))}
    if queries != keys or queries < image:
        return {}
    parts = labelling.parts(queries, layout.order)
    seen = Side(parts["image"], labelling.grid)
    return _joint(seen, Side(parts["text"])) if "text" in parts else {"image_to_image": Relation(seen, seen)}


def _of_levels(labelling: Labelling, path: str, queries: int, keys: int) -> dict[str, Relation]:
    """Of a U-Net, whose levels have grids of their own."""
    grid = labelling.image_grid(queries)
    if grid is None or labelling.layout is None:
        return {}
    image = Side(slice(0, queries), grid)
    if keys > queries and _adds_keys(labelling, path):
        text_first = labelling.layout.cross_order[0] == "text"
        first = keys - queries if text_first else queries
        text, own = (slice(0, first), slice(first, keys)) if text_first else (slice(first, keys), slice(0, first))
        return {
            "image_to_text": Relation(image, Side(text)),
            "image_to_image": Relation(image, Side(own, grid)),
        }
    if keys != queries or labelling.crosses(path, keys):
        return {"image_to_text": Relation(image, Side(slice(0, keys)))}
    return {"image_to_image": Relation(image, image)}


def _adds_keys(labelling: Labelling, path: str) -> bool:
    """Whether an attention layer looks at the image and at the condition in one sequence of keys."""
    module = labelling.denoiser.layers[path]
    parent = labelling.denoiser.layers.get(path.rpartition(".")[0])
    if getattr(parent, "self_attn", None) is True:
        return True
    return getattr(module, "added_kv_proj_dim", None) is not None and not getattr(
        module, "only_cross_attention", False
    )


def _joint(image: Side, text: Side) -> dict[str, Relation]:
    return {
        "image_to_text": Relation(image, text),
        "image_to_image": Relation(image, image),
        "text_to_image": Relation(text, image),
    }


def is_to_text(labelling: Labelling, module: nn.Module, index: int, count: int) -> bool:
    """Whether an attention, of `count` that a layer computes, looks at the text and not at an image prompt.

    Beside the text, layers look at image prompts (IP-Adapter) in attentions of their own; differential attention looks
    at the text twice.
    """
    layout = labelling.layout
    of_text = count - 1 if layout is not None and layout.image_prompt_first else 0
    return index == of_text or bool(getattr(module, "use_differential", False))


def wholes(calls: Sequence[AttentionCall], labelling: Labelling, path: str, rows: int, heads: int) -> list[slice]:
    """Which of a layer's attentions belong together: it may compute them row by row, or in slices.

    Args:
        calls (sequence of [`AttentionCall`]): The attentions of one run of a layer.
        labelling ([`Labelling`]): Of the denoiser's call.
        path (`str`): The layer.
        rows (`int`): Rows of the layer's input.
        heads (`int`): Its heads; some layers compute them as rows.

    Returns:
        `list[slice]`: Without those that leave out rows, as perturbed attention does.
    """
    found: list[slice] = []
    start = batch = 0
    for index, call in enumerate(calls):
        batch += call.shape[0]
        heads_are_rows = call.probabilities is not None and call.probabilities.ndim == 3
        if batch == rows * (heads if heads_are_rows else 1):
            if _is_whole(labelling, path, rows, call.shape[1]):
                found.append(slice(start, index + 1))
            start, batch = index + 1, 0
    return found


def _is_whole(labelling: Labelling, path: str, batch: int, queries: int) -> bool:
    """Whether a layer has all rows of the denoiser's batch, their frames, or their places over time."""
    rows = labelling.rows
    if batch == rows or batch == rows * (labelling.frames or 1):
        return True
    return labelling.over_time(path, batch, queries) is not None


def heads_of(module: nn.Module) -> int:
    """Number of heads of an attention layer, as far as it says so."""
    names = ("heads", "num_heads", "num_attention_heads")
    return next((count for name in names if isinstance(count := getattr(module, name, None), int)), 1)


def joined(parts: Sequence[AttentionCall]) -> AttentionCall:
    """Attentions that belong together as one of all rows."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].probabilities is not None:
        return AttentionCall(
            None, None, {}, torch.cat([part.probabilities for part in parts if part.probabilities is not None])
        )
    heads = parts[0].query.shape[1] if parts[0].query is not None else 1
    weights = [part.weights(slice(None), heads) for part in parts]
    size = [max(weight.shape[axis] for weight in weights) for axis in (-2, -1)]
    # Rows may leave out padding of their own: it gets no weight.
    padded = [torch.nn.functional.pad(w, (0, size[1] - w.shape[-1], 0, size[0] - w.shape[-2])) for w in weights]
    return AttentionCall(None, None, {}, torch.cat(padded))
