"""Values of controls and of API calls: taken as they are, or refused in words; never bent."""

from collections.abc import Collection, Sequence
from typing import Any

from diffusers_xai.app.settings import SettingsError, limit, shortened


def whole(value: Any, what: str, low: int, high: int) -> int:
    """A whole number within a range.

    Raises:
        SettingsError: For anything else.
    """
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not ok or value != int(value):
        raise SettingsError(f"{what}: expected a whole number from {low} to {limit(high)}, got {shortened(value)}.")
    return int(value)


def number(value: Any, what: str, low: float, high: float) -> float:
    """A number within a range.

    Raises:
        SettingsError: For anything else.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise SettingsError(f"{what}: expected a number from {low:g} to {high:g}, got {shortened(value)}.")
    return float(value)


def flag(value: Any, what: str) -> bool:
    """Yes or no.

    Raises:
        SettingsError: For anything else.
    """
    if not isinstance(value, bool):
        raise SettingsError(f"{what}: expected yes or no, got {shortened(value)}.")
    return value


def some_of(values: Any, what: str, offered: Collection[str], most: int) -> list[str]:
    """Names out of those that are offered, without repetition; none if `None`.

    Raises:
        SettingsError: For other names, or more than `most`.
    """
    if values is None:
        return []
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) > most:
        got = len(values) if isinstance(values, list) else shortened(values)
        raise SettingsError(f"{what}: expected a list of at most {most} names, got {got}.")
    for value in values:
        if not isinstance(value, str) or value not in offered:
            raise SettingsError(
                f"{what}: expected names that are offered, got {shortened(value)}; available: {', '.join(offered)}."
            )
    return list(dict.fromkeys(values))
