"""Words of given token strings."""

import numpy as np
import pytest

from diffusers_xai import WordMaps, record
from tests.tiny import make_pipeline


def maps_of(strings, word="t3"):
    pipe, run = make_pipeline("stable_diffusion")
    with record(pipe, [WordMaps(word, tokens=strings)]) as recording:
        run(prompt="a red fox")
    return recording.profile["word_maps"]


def test_strings_are_those_of_the_first_tokens_and_padding_needs_none():
    pipe, _ = make_pipeline("stable_diffusion")
    length = pipe.tokenizer.model_max_length
    named = [f"t{i}" for i in range(length)]
    assert np.array_equal(maps_of(named[:4]).values, maps_of(named).values)
    assert not np.array_equal(maps_of(named, "t2").values, maps_of(named).values)
    with pytest.raises(
        ValueError, match=rf"at most as many `tokens` as the layer looks at, {length}, got {length + 1}"
    ):
        maps_of([*named, "one more"])
