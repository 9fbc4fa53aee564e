"""Layers as specs name them."""

from collections.abc import Iterable


def layer_names(layers: str | Iterable[str]) -> tuple[str, ...]:
    """One or several layer names or globs as a tuple.

    Raises:
        TypeError: if something is not a name.
    """
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"Expected `layers` as a name or several, got {names}.")
    return names
