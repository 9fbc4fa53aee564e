"""What a reader sees of a text's tokens, and where words stand in it."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import regex


_PART = "\ufffd"  # what decoders show for bytes that are no whole character
_WHOLE = regex.compile(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)*|\X")  # a number, or what readers see as one character
_BYTES_BY_NUMBER = {chr(byte) for byte in range(128, 256)}  # those of characters that are not ASCII's
_STYLES = "\ufe0e\ufe0f"  # say whether the character before them is shown as text or as an emoji


@dataclass(frozen=True)
class SpelledText:
    """A text as its tokens spell it.

    Attributes:
        strings (`list[str]`): By token, the characters that it holds, or has some of the bytes of; special tokens have
            the name that their tokenizer gives them.
        text (`str`): The whole text, with a space for each special token.
        spans (`list[tuple[int, int]]`): By token, where its characters begin and end in `text`.
        inner (`set[int]`): Indices in `text` within the words that were added to the tokenizer's own.
        respell (`Callable`, *optional*): Gives a word as the tokenizer writes it, if it writes words in its own way.
    """

    strings: list[str]
    text: str
    spans: list[tuple[int, int]]
    inner: set[int]
    respell: Callable[[str], str] | None = None

    def places(self, word: str) -> Iterator[list[int]]:
        """Indices of the tokens that spell `word`, place by place: a part of a longer word, number or emoji is none.

        First as it is written, then with its accents as characters of their own or not, then as the tokenizer writes
        it; a special token has its name. Chinese, Japanese and Korean characters may be words themselves: 여우 (a fox)
        is one in 여우가 (the fox does), and so in 여우비 (a sun shower).
        """
        forms = [word, *(unicodedata.normalize(form, word) for form in ("NFC", "NFD"))]
        if self.respell is not None:
            forms.append(self.respell(word) or word)
        for form in dict.fromkeys(forms):
            yield from self._places(form)
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
            if self._is_end(first) and self._is_end(behind):
                spans = [(max(start, first), min(stop, behind)) for start, stop in self.spans]
                yield [i for i, (start, stop) in enumerate(spans) if start < stop and self.text[start:stop].strip()]

    def _is_end(self, index: int) -> bool:
        """Whether a word may begin or end there."""
        before, behind = self._wholes.get(index), self.text[index : index + 1]
        if self._digits_are_apart and all(
            part.isdecimal() for part in (self.text[:index].rstrip()[-1:], self.text[index:].lstrip()[:1])
        ):
            return False
        return before is not None and index not in self.inner and not (_is_letter(before) and _is_letter(behind))

    @cached_property
    def _digits_are_apart(self) -> bool:
        """Whether the tokenizer makes every digit a word, so that 20 26 and 2026 are the same tokens."""
        return self.respell is not None and self.respell("00").split() == ["0", "0"]

    @cached_property
    def _wholes(self) -> dict[int, str]:
        """By the index behind a number or a character that readers see, what it begins with."""
        return {0: ""} | {found.end(): found[0][0] for found in _WHOLE.finditer(self.text)}


def read_ids(tokenizer: Any, ids: Sequence[int]) -> SpelledText:
    """Reads the ids that a tokenizer made, by what it decodes them to."""
    strings = [str(string) for string in tokenizer.convert_ids_to_tokens(ids)]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    added = set(getattr(tokenizer, "added_tokens_decoder", ())) - special
    names = [string if token in special else None for token, string in zip(ids, strings, strict=True)]
    words = [string if token in added else None for token, string in zip(ids, strings, strict=True)]
    if not hasattr(tokenizer, "decode") or getattr(_backend_of(tokenizer), "decoder", True) is None:
        return _read(strings, names, words, _decoder_of(strings))

    def respell(word: str) -> str:
        written = tokenizer(word, add_special_tokens=False)["input_ids"]
        return "" if special & set(written) else read_ids(tokenizer, written).text.strip()

    def decode(part: list[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    of_bytes = (token for token, string in zip(ids, strings, strict=True) if string in _BYTES_BY_NUMBER)
    if any(not decode([token]) for token in of_bytes):
        return _read(strings, names, words, _of_numbered_bytes, respell)
    return _read(ids, names, words, decode, respell)


def read_strings(strings: Sequence[str]) -> SpelledText:
    """Reads strings of tokens as a tokenizer gives them, or whole words."""
    names = [string if regex.fullmatch(r"<(?!0x)[^<>]+>|\[[^\[\]]+\]", string) else None for string in strings]
    of_clip = any("</w>" in string for string in strings)  # whose digits are words, each
    respell = (lambda word: regex.sub(r"(\d)", r" \1 ", word)) if of_clip else None
    return _read(strings, names, [None] * len(names), _decoder_of(strings), respell)


def _read(
    tokens: Sequence[Any],
    names: Sequence[str | None],
    words: Sequence[str | None],
    decode: Callable[[list[Any]], str],
    respell: Callable[[str], str] | None = None,
) -> SpelledText:
    """Reads tokens one by one: what each adds to those before it, back to the last one that began a character.

    Special tokens have `names`; tokens that were added to the tokenizer's own have the `words` that they are. Of a
    learned word of several vectors (textual inversion: `<toy>`, `<toy>_1`, …), each token is the whole word.
    """
    known: dict[tuple, str] = {}

    def decoded(part: list[Any]) -> str:
        if tuple(part) not in known:
            known[tuple(part)] = decode(part)
        return known[tuple(part)]

    text, spans, inner = "", [], set()
    before: list[Any] = []  # whole characters
    begun: list[Any] = []  # tokens behind them whose last character is not whole
    seen, whole = "", 0  # what both spell, and how much of it is in `text`
    learned, vectors, place = "", 0, (0, 0)  # the word that was added last, how many vectors of it, and its span
    for token, name, word in zip([*tokens, None], [*names, "end"], [*words, None], strict=True):
        if learned and word == f"{learned}_{vectors}":
            spans.append(place)
            vectors += 1
            continue
        if name is not None or word is not None:
            text += _PART * bool(begun)
            start = len(text)
            if name is None and word is not None:
                written = word.replace("▁", " ")
                text += written if written.isspace() else f" {written} "  # decoders may put no spaces there
                inner |= {*range(start + 2, len(text) - 1)}
            spans.append((start, len(text)))
            learned, vectors, place = word or "", 1, spans[-1]
            text += " " * (name is not None)
            before, begun, seen, whole = [], [], "", 0
            continue
        begun.append(token)
        now = decoded([*before, *begun])
        is_part = now.endswith(_PART)
        goes_on = not is_part and now.startswith(seen)
        start = len(text) + (len(seen) - whole if goes_on else 0)
        text += now[whole : len(now.rstrip(_PART))] if is_part else now[whole:]
        spans.append((start, len(text) + is_part))
        if text[start:].strip():  # spaces may stand between its vectors
            learned = ""
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
    return SpelledText(strings, text, spans, inner, respell)


def _backend_of(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None)


def _of_numbered_bytes(part: list[str]) -> str:
    """Puts strings of ByT5 together, each the character with a byte's number; its decoder drops broken ones."""
    return bytes(map(ord, part)).decode(errors="replace")


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
            return regex.sub(rb"<0x([0-9A-F]{2})>", lambda m: bytes.fromhex(m[1].decode()), written).decode(
                errors="replace"
            )

        return of_pieces
    return lambda part: " ".join(part).replace(" ##", "")


def _bytes_by_character() -> dict[str, int]:
    """The alphabet of byte-level tokenizers: printable characters for themselves, others from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _pattern(word: str) -> regex.Pattern[str]:
    """A word or phrase in a text: tokenizers put spaces of their own anywhere but between two letters."""
    pattern, before = "", ""
    for part in word.split():
        for i, character in enumerate(character for character in part if character not in _STYLES):
            space = "" if i else r"\s+"
            pattern += space if _is_letter(before) and _is_letter(character) else r"\s*" if before else ""
            pattern += regex.escape(character) + f"[{_STYLES}]?"
            before = character
    return regex.compile(pattern, regex.IGNORECASE)


def _is_letter(character: str) -> bool:
    """Whether it is a letter, a digit, or an accent on one, of a script that writes words."""
    is_of_word = character != "" and unicodedata.category(character)[0] in "LMN"
    return is_of_word and unicodedata.east_asian_width(character) not in ("W", "F")
