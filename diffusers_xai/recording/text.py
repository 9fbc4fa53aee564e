"""The words behind the tokens of a prompt."""

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from diffusers_xai.denoisers import networks_of
from diffusers_xai.passed import Pipeline
from diffusers_xai.recording.clock import Run
from diffusers_xai.taps import tap_call


class UnknownWordError(ValueError):
    """A word that no text encoder was given whole: none of the prompt's, or cut off where the prompt is too long.

    Args:
        word (`str`): The word.
        message (`str`): What was expected.
    """

    def __init__(self, word: str, message: str):
        super().__init__(message)
        self.word = word


@dataclass(frozen=True)
class _Encoded:
    """What one call of a text encoder was given: token ids (row, token), and which of them are no padding."""

    ids: torch.Tensor
    attended: torch.Tensor | None
    tokenizer: Any


@dataclass
class PromptTokens:
    """What a pipeline's text encoders were given for its prompts, read from the calls of one run.

    Attributes:
        encoded (`dict[str, _Encoded]`): Name of the text encoder -> its first call, that of the prompts themselves.
    """

    pipeline: Pipeline | None = None
    encoded: dict[str, _Encoded] = field(default_factory=dict)

    @staticmethod
    @contextmanager
    def tapped(run: Run) -> Iterator["PromptTokens"]:
        """Reads the token ids that go into the pipeline's text encoders while the context is open."""
        prompt = PromptTokens(run.pipeline)
        with ExitStack() as stack:
            for name, module in networks_of(run.pipeline).items():
                tokenizer = getattr(run.pipeline, name.replace("text_encoder", "tokenizer"), None)
                if "text_encoder" in name and callable(tokenizer):
                    stack.enter_context(tap_call(module, partial(prompt._note, name, tokenizer)))
            yield prompt

    def _note(self, name: str, tokenizer: Any, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if (
            name not in self.encoded
            and isinstance(ids, torch.Tensor)
            and ids.ndim == 2
            and not ids.is_floating_point()
        ):
            self.encoded[name] = _Encoded(ids.cpu(), _mask(kwargs.get("attention_mask")), tokenizer)

    def strings(self, keys: int, row: int) -> list[str] | None:
        """The strings of `keys` tokens of the condition for the prompt of index `row`; `None` if not known."""
        keys -= len(behind := self._behind())
        whole = next((strings for ids, strings in self._sequences(row) if len(ids) == keys), None) or self._cut(
            keys, row
        )
        return None if whole is None else [*whole, *behind]

    def _behind(self) -> list[str]:
        """What pipelines put behind the tokens of the text: the durations of sound."""
        name = type(self.pipeline).__name__
        durations = ["[seconds]"] if name.startswith("StableAudio3") else ["[start]", "[end]"]
        return durations if name.startswith("StableAudio") else []

    def positions(self, word: str, keys: int, sample: int, samples: int) -> list[int]:
        """Indices among `keys` tokens of those that spell `word` in the prompt of an image; its first place.

        Raises:
            ValueError: if the tokens of the layer are not known, or the word is not among them.
        """
        prompts = max((entry.ids.shape[0] for entry in self.encoded.values()), default=1)
        row = sample * prompts // samples
        strings = self.strings(keys, row)
        if strings is None:
            known = {name: entry.ids.shape[1] for name, entry in self.encoded.items()}
            raise ValueError(
                f"WordMaps: expected as many text tokens as the text encoders were given ({known or 'none'}), got a"
                f" layer with {keys}. Give their strings as `tokens=[…]`."
            )
        found = spelled(strings, word)
        if not found:
            raise ValueError(f"WordMaps: expected words of the prompt, got {word!r}; its tokens: {_shown(strings)}.")
        return found

    def check(self, word: str) -> None:
        """Refuses a word that no text encoder was given.

        Raises:
            UnknownWordError: with the prompt's tokens.
            ValueError: if the prompt was not tokenized.
        """
        if not self.encoded:
            raise ValueError(
                "WordMaps: expected a pipeline that tokenizes its prompt, got none (were `prompt_embeds` given?). Give"
                " the tokens' strings as `tokens=[…]`."
            )
        rows = max(entry.ids.shape[0] for entry in self.encoded.values())
        for row in range(rows):
            every = [strings for _, strings in self._sequences(row)]
            if not any(spelled(strings, word) for strings in every):
                raise UnknownWordError(
                    word,
                    f"WordMaps: expected words of the prompt, got {word!r}; the tokens of prompt {row}:"
                    f" {_shown(every[0])}.",
                )

    def _sequences(self, row: int) -> Iterator[tuple[list[int], list[str]]]:
        """Sequences of tokens that a layer may look at: one encoder's, its tokens without padding, several joined."""
        single = []
        for entry in self.encoded.values():
            ids = entry.ids[min(row, entry.ids.shape[0] - 1)]
            single.append((ids.tolist(), _strings(entry, ids)))
        yield from single
        for count in range(2, len(single) + 1):
            for parts in itertools.combinations(single, count):
                yield sum((ids for ids, _ in parts), []), sum((strings for _, strings in parts), [])
        for entry in self.encoded.values():
            if entry.attended is not None:
                row_ids = entry.ids[min(row, entry.ids.shape[0] - 1)]
                kept = row_ids[entry.attended[min(row, entry.ids.shape[0] - 1)].bool()]
                yield kept.tolist(), _strings(entry, kept)

    def _cut(self, keys: int, row: int) -> list[str] | None:
        """Where one encoder's tokens are cut: its last ones (a template in front is left out), or padded behind."""
        for entry in self.encoded.values():
            index = min(row, entry.ids.shape[0] - 1)
            ids = entry.ids[index]
            if type(self.pipeline).__name__.startswith("Sana") and len(ids) > keys:
                return _strings(entry, torch.cat([ids[:1], ids[len(ids) - keys + 1 :]]))
            if entry.attended is not None and type(self.pipeline).__name__.startswith("ZImage"):
                kept = ids[entry.attended[index].bool()]
                if len(kept) < keys and keys % 32 == 0 and -(-len(kept) // 32) * 32 == keys:
                    return _strings(entry, kept) + [""] * (keys - len(kept))
            if len(ids) > keys and len(self.encoded) == 1:
                return _strings(entry, ids[-keys:])
        return None


def token_coordinate(run: Run, prompt: PromptTokens, keys: int) -> dict[str, Any]:
    """The coordinate `token` of a layer's `keys` text tokens: their strings, where they are known and the same."""
    rows = max((entry.ids.shape[0] for entry in prompt.encoded.values()), default=0)
    every = [prompt.strings(keys, row) for row in range(rows)]
    if not every or any(strings is None for strings in every):
        return {}
    if all(strings == every[0] for strings in every):
        return {"token": every[0]}
    repeats = run.num_samples // len(every)
    return {"text": (("sample", "token"), np.repeat(np.array(every), repeats, axis=0))}


def _mask(mask: Any) -> torch.Tensor | None:
    return mask.cpu() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def _strings(entry: _Encoded, ids: torch.Tensor) -> list[str]:
    return [str(token) for token in entry.tokenizer.convert_ids_to_tokens(ids.tolist())]


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


def _shown(strings: list[str]) -> str:
    return " ".join(strings[:40]) + (" …" if len(strings) > 40 else "")
