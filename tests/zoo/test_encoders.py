"""Words of a prompt that a pipeline encodes itself, where the other entries of the zoo are given embeddings."""

import numpy as np
import pytest

from diffusers_xai import WordMaps, record
from tests.zoo.encoders import ENCODERS, with_encoder
from tests.zoo.oracles import word_map
from tests.zoo.running import run, spied


QUICK = ("hidream", "stable-cascade, prior")  # whose networks join texts in an order of their own


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ENCODERS]
)
def test_a_word_is_where_the_tokenizer_put_it(name):
    entry = with_encoder(name)
    pipe = entry.make()
    with record(pipe, [WordMaps("fox", steps=1)]) as recording:
        run(pipe, entry)
    found = recording.profile["word_maps"].isel(step=0).sel(token="fox")
    np.testing.assert_allclose(found, word_map(spied(pipe, entry), entry, 1, entry.words["fox"]), atol=1e-6)
