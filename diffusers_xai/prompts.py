"""The words of a prompt, and the prompt without one of them."""

import re


_MOST_WORDS = 12
# Words that stand for nothing in the image.
_SMALL_WORDS = frozenset(
    ["a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or", "the", "to", "with"]
)


def words_of(prompt: str) -> list[str]:
    """The words that are looked at where none are chosen: the first twelve that may stand for something, each once."""
    every = dict.fromkeys(re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt))
    return [word for word in every if word.lower() not in _SMALL_WORDS][:_MOST_WORDS]


def without(prompt: str, word: str) -> str:
    """The prompt without a word, and without the space or comma that it leaves behind.

    Raises:
        ValueError: If the word is not in the prompt, or is all of it.
    """
    pattern = re.compile(rf"(?<![\w'-]){re.escape(word.strip())}(?![\w'-])", re.IGNORECASE)
    if not word.strip() or not pattern.search(prompt):
        raise ValueError(f"words: expected words of the prompt {prompt!r}, got {word!r}")
    text = re.sub(r"\s+", " ", pattern.sub("", prompt))
    text = re.sub(r"\s*,(\s*,)+", ",", re.sub(r"\s+,", ",", text)).strip(" ,")
    if not text:
        raise ValueError(f"words: expected a prompt with more than the word {word!r}, got {prompt!r}")
    return text
