import pytest

from diffusers_xai import AttentionWeights, record
from diffusers_xai.recording.text import spelled
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run


CLIP = ["<|startoftext|>", "a</w>", "fire", "fox</w>", ",</w>", "a</w>", "fox</w>", "<|endoftext|>", "<|endoftext|>"]
T5 = ["▁a", "▁fire", "fox", ",", "▁", "fox", "▁(", "ox", ")", "</s>"]
BYTES = ["A", "Ġred", "Ġfo", "x", ".", "Ġ20", "26"]
CHINESE = ["▁", "一只", "红", "狐狸", "</s>"]
PLAIN = ["a", "fire", "fox", "fox"]


@pytest.mark.parametrize(
    ("tokens", "word", "places"),
    [
        (CLIP, "fox", [6]),  # not the end of "firefox"
        (CLIP, "firefox", [2, 3]),
        (CLIP, "Firefox", [2, 3]),
        (CLIP, "fire", []),
        (CLIP, "a fox", [5, 6]),
        (CLIP, "ox", []),
        (T5, "fox", [4, 5]),
        (T5, "fire", []),
        (T5, "firefox", [1, 2]),
        (T5, "ox", [7]),
        (BYTES, "a", [0]),
        (BYTES, "fox", [2, 3]),
        (BYTES, "2026", [5, 6]),
        (BYTES, "26", []),
        (CHINESE, "狐狸", [3]),
        (CHINESE, "红狐狸", [2, 3]),
        (PLAIN, "fire", [1]),  # words that were given as tokens
        (PLAIN, "fox", [2]),
        (PLAIN, "fire fox", [1, 2]),
    ],
)
def test_words_are_whole(tokens, word, places):
    assert spelled(tokens, word) == places


@pytest.mark.parametrize(
    ("name", "behind"), [("stable-audio", ["[start]", "[end]"]), ("stable-audio-3", ["[seconds]"])]
)
def test_durations_of_sound_stand_behind_the_tokens_of_the_prompt(name, behind):
    entry = ZOO[name]
    pipe = entry.make()
    with record(pipe, [AttentionWeights(layers=entry.attention, steps=0)]) as recording:
        run(pipe, entry)
    text = recording.profile[f"attention_weights/{entry.attention}"]["text"].values
    padding = ["<pad>"] * 8
    assert text[0].tolist() == ["▁a", "▁r", "e", "d", "▁f", "o", "x", "</s>", *padding, *behind]
    assert text[1].tolist() == ["▁a", "▁c", "a", "t", "</s>", *padding, *["<pad>"] * 3, *behind]
