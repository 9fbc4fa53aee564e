"""Plain JSON for a profile's index: what has no JSON form is named, and every float survives."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_json(value: Any, where: str = "provenance") -> Any:
    """A copy of `value` made of JSON types only: numpy scalars become Python's, tuples lists, keys text.

    Args:
        value (`Any`): Nested mappings, lists and tuples of text, numbers, booleans and `None`.
        where (`str`): How the error calls the value.

    Returns:
        `Any`: What writing `value` to a profile and reading it again gives.

    Raises:
        TypeError: If something in it has no JSON form; the text says where.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: expected text, numbers, lists and dicts, got {type(value).__name__}: {value!r:.80}.")


def dump(value: Any) -> str:
    """Strict JSON with dicts over several lines and lists on one, so that a thousand timesteps take one line.

    Floats that JSON lacks (NaN, infinities) become {"__float__": "nan"}.

    Args:
        value (`Any`): JSON types, as [`to_json`] makes them.
    """
    return _layout(_encode_floats(value), "") + "\n"


def load(text: str) -> Any:
    """The value that [`dump`] wrote.

    Raises:
        ValueError: If the text is no JSON.
    """
    return json.loads(text, object_hook=_decode_float)


def _layout(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False)
    inner = indent + "  "
    items = ",\n".join(f"{inner}{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items())
    return f"{{\n{items}\n{indent}}}"


def _encode_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": str(value)}
    if isinstance(value, dict):
        return {key: _encode_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode_floats(item) for item in value]
    return value


def _decode_float(value: dict) -> Any:
    return float(value["__float__"]) if value.keys() == {"__float__"} else value
