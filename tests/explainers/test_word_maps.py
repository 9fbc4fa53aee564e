"""Words of given token strings."""

import numpy as np
import pytest
import torch

from diffusers_xai import AttentionWeights, WordMaps, record
from tests.tiny import make_pipeline, stable_diffusion


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


def test_images_of_several_prompts_and_generators_are_those_of_runs_of_their_own():
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"

    def recorded(seeds, **call):
        pipe = stable_diffusion()
        specs = [WordMaps("a"), AttentionWeights(layers=layer)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with record(pipe, specs) as recording:
            pipe(num_inference_steps=2, guidance_scale=3.0, generator=generators, output_type="latent", **call)
        return recording.profile

    prompts = ["a red fox", "the a cat"]
    together = recorded(range(4), prompt=prompts, num_images_per_prompt=2)
    for i in range(4):
        alone = recorded([i], prompt=prompts[i // 2])
        for name in ("word_maps", f"attention_weights/{layer}"):
            np.testing.assert_allclose(together[name].isel(sample=i), alone[name].isel(sample=0), atol=1e-6)
        strings = [profile[f"attention_weights/{layer}"].text for profile in (together, alone)]
        own = strings[0].isel(sample=i) if "sample" in strings[0].dims else strings[0]
        assert own.sel(branch="cond").values.tolist() == strings[1].sel(branch="cond").values.tolist()
        assert "".join(own.sel(branch="cond").values[1:4].tolist()) == prompts[i // 2].replace(" ", "")[:3]
