"""What readers see of tokens, and words among them, against what the tokenizers' own offsets say."""

import pytest

from diffusers_xai.recording.spelling import read_ids, read_strings
from tests.zoo.tokenizers import (
    bert_tokenizer,
    byt5_tokenizer,
    clip_tokenizer,
    gemma_tokenizer,
    qwen2_tokenizer,
    unigram_tokenizer,
)


MAKERS = [bert_tokenizer, byt5_tokenizer, clip_tokenizer, gemma_tokenizer, qwen2_tokenizer, unigram_tokenizer]
PROMPT = "See A red fox, redder than le café noir: 一只红狐狸 🦊! don't CAFÉ"
WORDS = [
    "red", "Fox", "redder", "than", "le", "café", "cafÉ noir", "狐狸", "红狐狸", "🦊", "don't", "fox, redder", "!",
    "a red",
]  # fmt: skip
NO_WORDS = ["der", "an", "re", "caf", "dog", "狗", "pad", "startoftext", "redfox", "fox red", "👩"]


def by_offsets(tokenizer, prompt, word):
    """Tokens of a word's first place by the tokenizer's own offsets, those of spaces left out."""
    first = prompt.lower().index("le " if word == "le" else word.lower())
    if tokenizer.is_fast:
        offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    else:  # a token for each byte
        offsets = [(i, i + 1) for i, character in enumerate(prompt) for _ in character.encode()]
    return [
        token
        for token, (start, stop) in enumerate(offsets)
        if prompt[start:stop].strip() and start < first + len(word) and first < stop
    ]


@pytest.mark.parametrize("make", MAKERS)
def test_words_are_found_by_the_characters_that_tokens_cover(make):
    tokenizer = make()
    reading = read_ids(tokenizer, tokenizer(PROMPT).input_ids)
    known = [
        word
        for word in WORDS
        if tokenizer.unk_token_id not in tokenizer(word, add_special_tokens=False).input_ids
        and (make is not unigram_tokenizer or not set("狐🦊!") & set(word))  # there bytes have the place of all around
    ]
    assert len(known) > len(WORDS) - 5
    assert {word: next(reading.places(word)) for word in known} == {
        word: by_offsets(tokenizer, PROMPT, word) for word in known
    }
    assert not [word for word in NO_WORDS if list(reading.places(word))]
    assert "�" not in "".join(reading.strings)


BYTES_OF_FOX = ["狐"] * 3 + ["狸"] * 3


@pytest.mark.parametrize(
    ("make", "text", "strings"),
    [
        (clip_tokenizer, "Fox, café", ["<|startoftext|>", "fox", ",", "c", "a", "f", "é", "é", "<|endoftext|>"]),
        (clip_tokenizer, "狐狸", ["<|startoftext|>", *BYTES_OF_FOX, "<|endoftext|>"]),
        (qwen2_tokenizer, "红狐狸 redder", ["红", "红狐", "狐", "狸", "狸", "red", "de", "r"]),
        (unigram_tokenizer, "redder fox, 狐狸", ["re", "d", "d", "e", "r", "fo", "x,", " ", *BYTES_OF_FOX]),
        (gemma_tokenizer, "fox 🦊", ["f", "o", "x", " ", *["🦊"] * 4]),
        (byt5_tokenizer, "é 狐狸", ["é", "é", " ", *BYTES_OF_FOX, "</s>"]),
        (bert_tokenizer, "Café 狐狸", ["[CLS]", "cafe", "狐", "狸", "[SEP]"]),
    ],
)
def test_strings_are_what_a_reader_sees(make, text, strings):
    tokenizer = make()
    ids = tokenizer(text).input_ids
    assert read_ids(tokenizer, ids).strings == strings
    if make not in (bert_tokenizer, byt5_tokenizer):  # whose strings have no marks of their own
        assert read_strings(tokenizer.convert_ids_to_tokens(ids)).strings == strings


def test_what_is_cut_off_within_a_character_is_no_word():
    for tokenizer in (qwen2_tokenizer(), unigram_tokenizer()):
        ids = tokenizer("fox 狐狸").input_ids
        reading = read_ids(tokenizer, [*ids[:-1], tokenizer.pad_token_id, tokenizer.pad_token_id])
        assert reading.strings[-3:] == ["�", tokenizer.pad_token, tokenizer.pad_token]
        assert [list(reading.places(word)) for word in ("狐狸", "狸")] == [[], []]
        assert reading.shown(range(len(reading.strings))) == f"fox 狐�{tokenizer.pad_token}"
        assert next(reading.places("狐"))


@pytest.mark.parametrize(
    ("text", "word", "is_there"),
    [
        ("an astronaut 👩‍🚀", "👩", False),
        ("an astronaut 👩‍🚀", "👩‍🚀", True),
        ("a heart ❤️", "❤", True),
        ("a cafe\u0301", "cafe", False),
        ("firefox and fire", "fire", True),
        ("fire fox", "firefox", False),
        ("firefox", "fire fox", False),
        ("the fox's red-haired cub", "fox", True),
        ("a 3D狐狸", "狐狸", True),
        ("a 3D狐狸", "D", False),
        ("a ❤️fox", "fox", True),
        ("a ❤️fox", "❤️", True),
        ("a heart ❤", "❤️", True),
        ("a heart ❤️‍🔥", "❤️", False),
        ("a thumb 👍🏽", "👍", False),
        ("a thumb 👍🏽", "👍🏽", True),
        ("🇫🇷🇩🇪", "🇩🇪", True),
        ("🇫🇷🇩🇪", "🇷🇩", False),
        ("🇫🇷🇩🇪", "🇫", False),
        ("1,000 foxes", "000", False),
        ("1,000 foxes", "1", False),
        ("1,000 foxes", "1,000", True),
        ("foxes 1,2,3", "2", True),
        ("fox v2.5", "5", False),
        ("1 2 foxes", "12", False),
        ("1 2 foxes", "1 2", True),
        ("여우가", "여우", True),
    ],
)
def test_a_part_of_a_word_is_none(text, word, is_there):
    tokenizer = qwen2_tokenizer()
    assert any(read_ids(tokenizer, tokenizer(text).input_ids).places(word)) == is_there


@pytest.mark.parametrize("make", MAKERS)
def test_tokens_that_were_added_are_words(make):
    tokenizer = make.__wrapped__()
    tokenizer.add_tokens(["<fox-é>", "sks"])
    for prompt in ("a sks <fox-é> fox", "a sks<fox-é>fox"):
        ids = tokenizer(prompt).input_ids
        sks, other = (ids.index(tokenizer.convert_tokens_to_ids(word)) for word in ("sks", "<fox-é>"))
        reading = read_ids(tokenizer, ids)
        fox = [
            i
            for i in range(other + 1, len(ids))
            if ids[i] not in tokenizer.all_special_ids and reading.strings[i] != " "
        ]
        found = {
            word: next(reading.places(word), []) for word in ("sks", "<fox-é>", "fox", "sks <fox-é> fox", "sk", "é")
        }
        assert found == {
            "sks": [sks], "<fox-é>": [other], "fox": fox, "sks <fox-é> fox": [sks, other, *fox],
            "sk": [], "é": [],
        }  # fmt: skip
        assert "sks <fox-e> fox" in reading.shown(range(len(ids))).replace("é", "e")


@pytest.mark.parametrize(("text", "word"), [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
def test_accents_may_be_characters_of_their_own(text, word):
    tokenizer = gemma_tokenizer()  # which leaves both as they are
    ids = tokenizer(f"a {text} fox").input_ids
    reading = read_ids(tokenizer, ids)
    assert (
        next(reading.places(word))
        == next(reading.places(text))
        == [*range(2, ids.index(tokenizer.convert_tokens_to_ids("▁fox")))]
    )


@pytest.mark.parametrize(
    ("tokens", "word", "places"),
    [
        (["a</w>", "fire", "fox</w>", ",</w>", "a</w>", "fox</w>", "<|endoftext|>"], "fox", [5]),
        (["▁a", "▁fire", "fox", ",", "▁", "fox", "</s>"], "Firefox", [1, 2]),
        (["▁a", "▁fire", "fox", ",", "▁", "fox", "</s>"], "s", []),
        (["A", "Ġred", "Ġfo", "x", ".", "Ġ20", "26"], "2026", [5, 6]),
        (["cafÃ", "©", "Ġred"], "café", [0, 1]),
        (["ca", "##fe", "noir"], "cafe", [0, 1]),
        (["a", "fire", "fox", "fox"], "fox", [2]),  # whole words
        (["a", "fire", "fox", "fox"], "fire fox", [1, 2]),
        (["[start]", "[end]"], "[end]", [1]),
        (["a</w>", "2</w>", "0</w>", "fox</w>"], "20", [1, 2]),
    ],
)
def test_strings_that_were_given_may_have_marks(tokens, word, places):
    assert next(read_strings(tokens).places(word), []) == places


@pytest.mark.parametrize("make", MAKERS)
def test_a_learned_word_of_several_vectors_is_all_of_its_tokens(make):
    tokenizer = make.__wrapped__()
    tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2", "<hat>"])
    ids = tokenizer("a <toy> <toy>_1 <toy>_2 <hat> fox").input_ids
    toy = [ids.index(tokenizer.convert_tokens_to_ids(word)) for word in ("<toy>", "<toy>_1", "<toy>_2")]
    reading = read_ids(tokenizer, ids)
    assert next(reading.places("<toy>")) == toy
    assert next(reading.places("<hat>")) == [ids.index(tokenizer.convert_tokens_to_ids("<hat>"))]
    assert set(toy) < set(next(reading.places("<toy> <hat> fox")))
    assert [list(reading.places(word)) for word in ("<toy>_1", "toy", "<toy> fox")] == [[], [], []]
    assert "a <toy> <hat> fox" in reading.shown(range(len(ids)))
    assert [reading.strings[token] for token in toy] == ["<toy>"] * 3


def test_digits_side_by_side_are_a_number_where_the_tokenizer_makes_each_a_word():
    tokenizer = clip_tokenizer()
    assert tokenizer("fox 2026").input_ids == tokenizer("fox 20 26").input_ids
    for prompt in ("fox 2026", "fox 20 26"):
        reading = read_ids(tokenizer, tokenizer(prompt).input_ids)
        assert next(reading.places("2026")) == [2, 3, 4, 5]
        assert [list(reading.places(word)) for word in ("20", "026", "2")] == [[], [], []]
    reading = read_ids(tokenizer, tokenizer("2 red and 7").input_ids)
    assert list(reading.places("2"))
    assert list(reading.places("7"))
