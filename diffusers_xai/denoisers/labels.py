"""Class labels as integers, bits and attribute names."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def encode_label(
    label: int | Mapping[str, bool],
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
        if attributes is None:
            raise ValueError("This model's labels have no attribute names: pass integers as `class_labels`.")
        for name in label:
            if name not in attributes:
                nearest = difflib.get_close_matches(str(name), attributes, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"Expected attributes from {list(attributes)}, got {name!r}.{hint}")
        bits = [bool(label.get(name, False)) for name in attributes]
        return sum(bit << shift for shift, bit in enumerate(reversed(bits)))
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise TypeError(f"Expected a label as an integer or a dict of attributes, got {label!r}.")
    label = label.__index__()
    if label != null_label and not 0 <= label < num_classes:
        null = "" if null_label is None else f" or the null label {null_label}"
        raise ValueError(f"Expected a label in 0..{num_classes - 1}{null}, got {label}.")
    return label


def encode_labels(class_labels: Any, **kwargs: Any) -> list[int]:
    """Labels of a batch as integers, from one label, a sequence of labels or an integer tensor; see `encode_label`."""
    if isinstance(class_labels, torch.Tensor):
        if class_labels.is_floating_point():
            raise TypeError(f"Expected integer `class_labels`, got {class_labels.dtype}.")
        class_labels = class_labels.reshape(-1).tolist()
    if isinstance(class_labels, Mapping) or not isinstance(class_labels, Sequence):
        class_labels = [class_labels]
    return [encode_label(label, **kwargs) for label in class_labels]
