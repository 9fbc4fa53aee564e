"""What a reader sees of a text's tokens, and where words stand in it."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


_PART = "\ufffd"  # what decoders show for bytes that are no whole character
_JOINER = "\u200d"  # between the parts of an emoji


@dataclass(frozen=True)
class Reading:
    """A text as its tokens spell it.

    Attributes:
        strings (`list[str]`): By token, the characters that it holds, or has some of the bytes of; special tokens have
            the name that their tokenizer gives them.
        text (`str`): The whole text, with a space for each special token.
        spans (`list[tuple[int, int]]`): By token, where its characters begin and end in `text`.
        respell (`Callable`, *optional*): Gives a word as the tokenizer writes it, if it writes words in its own way.
    """

    strings: list[str]
    text: str
    spans: list[tuple[int, int]]
    respell: Callable[[str], str] | None = None

    def places(self, word: str) -> Iterator[list[int]]:
        """Indices of the tokens that spell `word`, place by place: a part of a longer word is none.

        First as it is written, then as the tokenizer writes it; a special token has its name.
        """
        yield from self._places(word)
        if self.respell is not None and (other := self.respell(word)) and other != word:
            yield from self._places(other)
        yield from ([i] for i, (start, stop) in enumerate(self.spans) if start == stop and self.strings[i] == word)

    def shown(self, tokens: Iterable[int]) -> str:
        """What some of its tokens spell, in one line; special tokens by name, several of a kind in a row once."""
        shown, end, last = "", 0, ""
        for token in sorted(tokens):
            (start, stop), name = self.spans[token], self.strings[token]
            is_special = start == stop and name.strip() != ""
            shown += name * (name != last) if is_special else self.text[max(start, end) : stop]
            end, last = max(end, stop), name if is_special else ""
        return " ".join(shown.split())

    def _places(self, word: str) -> Iterator[list[int]]:
        pattern, at = _pattern(word), 0
        while found := pattern.search(self.text, at):
            at, (first, behind) = found.start() + 1, found.span()
            if not any(_is_one_word(self.text[end - 1 : end], self.text[end : end + 1]) for end in (first, behind)):
                spans = [(max(start, first), min(stop, behind)) for start, stop in self.spans]
                yield [i for i, (start, stop) in enumerate(spans) if start < stop and self.text[start:stop].strip()]


def read_ids(tokenizer: Any, ids: Sequence[int]) -> Reading:
    """Reads the ids that a tokenizer made, by what it decodes them to."""
    strings = [str(string) for string in tokenizer.convert_ids_to_tokens(ids)]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    names = [string if token in special else None for token, string in zip(ids, strings, strict=True)]
    if not hasattr(tokenizer, "decode") or getattr(_backend_of(tokenizer), "decoder", True) is None:
        return _read(strings, names, _decoder_of(strings))

    def respell(word: str) -> str:
        written = tokenizer(word, add_special_tokens=False)["input_ids"]
        return "" if special & set(written) else read_ids(tokenizer, written).text.strip()

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return _read(ids, names, decode, respell)


def read_strings(strings: Sequence[str]) -> Reading:
    """Reads strings of tokens as a tokenizer gives them, or whole words."""
    names = [string if re.fullmatch(r"<(?!0x)[^<>]+>|\[[^\[\]]+\]", string) else None for string in strings]
    return _read(strings, names, _decoder_of(strings))


def _read(
    tokens: Sequence[Any],
    names: Sequence[str | None],
    decode: Callable[[list[Any]], str],
    respell: Callable[[str], str] | None = None,
) -> Reading:
    """Reads tokens one by one: what each adds to those before it, back to the last one that began a character."""
    known: dict[tuple, str] = {}

    def decoded(part: list[Any]) -> str:
        if tuple(part) not in known:
            known[tuple(part)] = decode(part)
        return known[tuple(part)]

    text, spans = "", []
    before: list[Any] = []  # whole characters
    begun: list[Any] = []  # tokens behind them whose last character is not whole
    seen, whole = "", 0  # what both spell, and how much of it is in `text`
    for token, name in zip([*tokens, None], [*names, "end"], strict=True):
        if name is not None:
            text += _PART * bool(begun)
            spans.append((len(text), len(text)))
            text += " "
            before, begun, seen, whole = [], [], "", 0
            continue
        begun.append(token)
        now = decoded([*before, *begun])
        is_part = now.endswith(_PART)
        goes_on = not is_part and now.startswith(seen)
        start = len(text) + (len(seen) - whole if goes_on else 0)
        text += now[whole : len(now.rstrip(_PART))] if is_part else now[whole:]
        spans.append((start, len(text) + is_part))
        seen, whole = now, max(whole, len(now.rstrip(_PART)) if is_part else len(now))
        if not is_part:
            before, begun = begun, []
            seen = decoded(before)
            whole = len(seen)
    text, spans = text[:-1], spans[:-1]
    strings = [
        (text[start:stop].strip() or text[start:stop] or " ") if name is None else name
        for (start, stop), name in zip(spans, names, strict=True)
    ]
    return Reading(strings, text, spans, respell)


def _backend_of(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None)


def _decoder_of(strings: Sequence[str]) -> Callable[[list[str]], str]:
    """What puts strings of tokens together, by the marks in them; without any, all are words."""
    if any("Ġ" in string or "</w>" in string for string in strings):
        alphabet = _bytes_by_character()

        def of_bytes(part: list[str]) -> str:
            text = "".join(part).replace("</w>", "Ġ")
            return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in text).decode(
                errors="replace"
            )

        return of_bytes
    if any("▁" in string for string in strings):

        def of_pieces(part: list[str]) -> str:
            written = "".join(part).replace("▁", " ").encode()
            return re.sub(rb"<0x([0-9A-F]{2})>", lambda m: bytes.fromhex(m[1].decode()), written).decode(
                errors="replace"
            )

        return of_pieces
    return lambda part: " ".join(part).replace(" ##", "")


def _bytes_by_character() -> dict[str, int]:
    """The alphabet of byte-level tokenizers: printable characters for themselves, others from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _pattern(word: str) -> re.Pattern[str]:
    """A word or phrase in a text: tokenizers put spaces of their own anywhere but between two letters."""
    pattern, before = "", ""
    for part in word.split():
        for i, character in enumerate(part):
            space = "" if i else r"\s+"
            pattern += space if _is_letter(before) and _is_letter(character) else r"\s*" if before else ""
            pattern += re.escape(character)
            before = character
    return re.compile(pattern, re.IGNORECASE)


def _is_one_word(before: str, behind: str) -> bool:
    """Whether two neighbours belong to one word or emoji; Chinese and Japanese characters may be words themselves."""
    joins = [
        _is_letter(character) or character.isalnum() and not _is_wide(character) for character in (before, behind)
    ]
    return all(joins) or _JOINER in (before, behind)


def _is_letter(character: str) -> bool:
    """Whether it is a letter, or an accent on one, of a script that writes words."""
    return character != "" and unicodedata.category(character)[0] in "LM" and not _is_wide(character)


def _is_wide(character: str) -> bool:
    return character != "" and unicodedata.east_asian_width(character) in ("W", "F")
