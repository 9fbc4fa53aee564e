"""Where words stand among the strings of tokens."""

import unicodedata
from collections.abc import Sequence


def spelled(strings: Sequence[str], word: str) -> list[int]:
    """Indices of the tokens that spell `word`: those of its first place; sub-words and phrases are put together.

    Where the tokens tell where words begin or end, a part of a longer word is none.
    """
    marked = any(mark in string for string in strings for mark in ("</w>", "▁", "Ġ"))
    spaced = [string.replace("</w>", " ").replace("▁", " ").replace("Ġ", " ").lower() for string in strings]
    wanted = "".join(word.split()).lower()
    for start in range(len(spaced)):
        text = ""
        for stop in range(start, len(spaced)):
            text += spaced[stop].strip()
            if text == wanted and (not marked or _is_whole(spaced, start, stop)):
                return list(range(start, stop + 1))
            if not wanted.startswith(text):
                break
    return []


def _is_whole(spaced: Sequence[str], start: int, stop: int) -> bool:
    """Whether neither a letter nor a digit goes on before or behind these tokens."""
    before, behind = "".join(spaced[start - 1 : start])[-1:], "".join(spaced[stop + 1 : stop + 2])[:1]
    begins = spaced[start][:1] == " " or not _joins(before)
    return begins and (spaced[stop][-1:] == " " or not _joins(behind))


def _joins(character: str) -> bool:
    """Whether a letter or digit belongs to the word beside it; Chinese and Japanese ones may be words themselves."""
    return character.isalnum() and unicodedata.east_asian_width(character) not in ("W", "F")
