"""Class labels as integers, bits and attribute names: the one place that reads and writes them."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike


# One label, or the labels of a batch, as `encode_labels` reads them.
ClassLabels: TypeAlias = Mapping[str, bool] | Sequence[int | Mapping[str, bool]] | ArrayLike | torch.Tensor


def encode_label(
    label: SupportsIndex | Mapping[str, bool],
    num_classes: int,
    null_label: int | None = None,
    attributes: Sequence[str] | None = None,
) -> int:
    """One label as an integer.

    Args:
        label (`int` or `dict[str, bool]`): The label itself, or attributes by name; those left out are `False`.
        num_classes (`int`): Labels lie in `0 .. num_classes - 1`.
        null_label (`int`, *optional*): The reserved label that is allowed besides.
        attributes (sequence of `str`, *optional*): Names of the label's bits, most significant first.

    Raises:
        ValueError: for a label out of range or an unknown attribute, with what is available.
        TypeError: for anything else than an integer or a dict.
    """
    if isinstance(label, Mapping):
        if not attributes:
            raise ValueError(
                "Expected `class_labels` as integers, got a dict: this model's labels have no attribute names."
            )
        for name in label:
            if name not in attributes:
                nearest = difflib.get_close_matches(str(name), attributes, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"Expected attributes from {list(attributes)}, got {name!r}.{hint}")
            if label[name] not in (False, True):
                raise ValueError(f"Expected {name} as True or False, got {label[name]!r}.")
        return label_from_bits([bool(label.get(name, False)) for name in attributes])
    if isinstance(label, bool | np.bool_) or not hasattr(label, "__index__"):
        raise TypeError(f"Expected a label as an integer or a dict of attributes, got {label!r}.")
    number = label.__index__()
    if number != null_label and not 0 <= number < num_classes:
        null = "" if null_label is None else f" or the null label {null_label}"
        raise ValueError(f"Expected a label in 0..{num_classes - 1}{null}, got {number}.")
    return number


def encode_labels(
    class_labels: ClassLabels,
    num_classes: int,
    null_label: int | None = None,
    attributes: Sequence[str] | None = None,
) -> list[int]:
    """Labels of a batch as integers.

    Args:
        class_labels: One label or a sequence of them, each as in [`encode_label`]; an integer array or tensor of shape
            `(batch,)`; or one of shape `(batch, n)` with a row of zeros and ones per image: one-hot where `n` is the
            number of classes, and the label's bits, most significant first, where `n` is that of the attributes
            (thesis listing C.2).
        num_classes (`int`): As in [`encode_label`].
        null_label (`int`, *optional*): As in [`encode_label`].
        attributes (sequence of `str`, *optional*): As in [`encode_label`].

    Raises:
        ValueError, TypeError: as [`encode_label`], and for an array of another shape or dtype.
    """
    values: Any = class_labels.tolist() if isinstance(class_labels, np.ndarray | torch.Tensor) else class_labels
    if isinstance(values, Mapping) or not isinstance(values, Sequence):
        values = [values]
    values = [value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value for value in values]
    if any(isinstance(value, list | tuple) for value in values):
        return [_from_row(row, num_classes, attributes or ()) for row in values]
    return [encode_label(value, num_classes, null_label, attributes) for value in values]


def labels_of_images(
    class_labels: ClassLabels | None,
    config: Mapping[str, Any],
    network: str,
    batch_size: int | None = None,
    guidance_scale: float = 1.0,
) -> list[int | None]:
    """The label of every image of a run; `None`s for an unconditional network.

    Args:
        class_labels: As in [`encode_labels`]; a single label is that of all images.
        config (`Mapping`): Of the network.
        network (`str`): What an error calls it.
        batch_size (`int`, *optional*): Number of images; the number of labels, or 1, if `None`.
        guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.

    Raises:
        ValueError, TypeError: for labels, a batch size or guidance that do not fit the network.
    """
    if batch_size is not None and (not hasattr(batch_size, "__index__") or batch_size < 1):
        raise ValueError(f"Expected `batch_size` as an integer of at least 1, got {batch_size!r}.")
    num_classes, null_label = config.get("num_class_embeds"), config.get("null_class_label")
    if guidance_scale != 1.0 and (num_classes is None or null_label is None):
        raise ValueError(
            f"Expected `guidance_scale=1.0`, got {guidance_scale}: this {network} was trained without a null label."
        )
    if num_classes is None:
        if class_labels is not None:
            raise ValueError(f"Expected no `class_labels`, got {class_labels!r}: this {network} is unconditional.")
        return [None] * (batch_size or 1)
    attributes = config.get("class_attributes")
    if class_labels is None:
        names = f" or dicts of {list(attributes)}" if attributes else ""
        raise ValueError(f"Expected `class_labels` as integers in 0..{num_classes - 1}{names}, got None.")
    labels: list[int | None] = [*encode_labels(class_labels, num_classes, null_label, attributes)]
    if not labels:
        raise ValueError("Expected at least one label in `class_labels`, got an empty sequence.")
    if batch_size is not None and len(labels) not in (1, batch_size):
        raise ValueError(f"Expected 1 or {batch_size} `class_labels` for `batch_size`, got {len(labels)}.")
    return labels * batch_size if batch_size is not None and len(labels) == 1 else labels


def _from_row(row: Any, num_classes: int, attributes: Sequence[str]) -> int:
    """The label of a one-hot row or a row of bits."""
    if isinstance(row, list | tuple) and all(not isinstance(cell, list) and cell in (0, 1) for cell in row):
        if len(row) == num_classes and sum(row) == 1:
            return list(row).index(1)
        if len(row) == len(attributes) > 0:
            return label_from_bits(row)
    bits = f" or of {len(attributes)} bits ({', '.join(attributes)})" if attributes else ""
    raise ValueError(
        f"Expected integer `class_labels` of shape (batch,), or rows of {num_classes} zeros with a single one{bits},"
        f" got the row {row}."
    )


def label_from_bits(bits: Sequence[Any]) -> int:
    """`"0011"`, or a row of zeros and ones, most significant first -> 3."""
    return sum(int(bit) << shift for shift, bit in enumerate(reversed(bits)))


def label_bits(label: int, attributes: Sequence[str]) -> str:
    """`3` of four attributes -> `"0011"`; a label that they do not make up, such as the null label, as its number."""
    return f"{label:0{len(attributes)}b}" if _is_made_of(label, attributes) else str(label)


def attributes_of(label: int, attributes: Sequence[str]) -> list[str]:
    """`3` of four attributes -> the last two names; none of a label that they do not make up."""
    bits = reversed(range(len(attributes)))
    known = _is_made_of(label, attributes)
    return [name for name, bit in zip(attributes, bits, strict=True) if known and label >> bit & 1]


def labels_between(first: int, second: int, attributes: Sequence[str]) -> list[int]:
    """Two labels and all that lie between: every combination of the attributes on which they differ.

    Args:
        first (`int`): The first of the list.
        second (`int`): The last of the list.
        attributes (`Sequence[str]`): Names of the labels' bits; without them nothing lies between two labels.

    Returns:
        `list[int]`: 2ⁿ labels of n differing attributes; the place of a label has a bit for each of them, that of the
        last attribute first.
    """
    if not attributes:
        return [first, second]
    changed = [bit for bit in range(len(attributes)) if (first ^ second) >> bit & 1]
    return [first ^ sum(1 << bit for i, bit in enumerate(changed) if n >> i & 1) for n in range(2 ** len(changed))]


def _is_made_of(label: int, attributes: Sequence[str]) -> bool:
    return bool(attributes) and 0 <= label < 2 ** len(attributes)


def attribute_words(attribute: str) -> str:
    """An attribute's name as it is read: `"Wearing Lipstick"` for `"Wearing_Lipstick"`."""
    return attribute.replace("_", " ")
