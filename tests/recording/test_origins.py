"""Only what comes from the sample has height and width, however many tokens, frames and slices there are."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from diffusers_xai import Activations, AttentionWeights, WordMaps, record
from diffusers_xai.denoisers import Denoiser, get_denoiser
from diffusers_xai.recording import origins
from tests.zoo.parts import t5_tokenizer
from tests.zoo.pipelines import ZOO
from tests.zoo.running import layers_of, run


PLACES = {"frame", "height", "width"}


def first_outputs(pipe, entry, seed):
    """What every layer put out when it first ran, as one vector, seen with plain hooks."""
    seen, handles = {}, []

    def keep(path, output):
        values = output if isinstance(output, (tuple, list)) else [output]
        tensors = [value for value in values if isinstance(value, torch.Tensor) and not value.is_complex()]
        if tensors:
            seen.setdefault(path, torch.cat([tensor.detach().flatten().float() for tensor in tensors]))

    for path, module in layers_of(pipe).items():
        handles.append(module.register_forward_hook(lambda m, args, output, path=path: keep(path, output)))
    result = run(pipe, entry, seed=seed)
    for handle in handles:
        handle.remove()
    return seen, result


@pytest.mark.parametrize(
    "name", ["hunyuan-dit", "auraflow", "z-image", "chroma", "cogview4", "flux, Kontext", "allegro"]
)
def test_what_is_the_same_for_every_noise_is_no_image(name):
    entry = replace(ZOO[name], steps=1)
    pipe = entry.make()
    (one, result), (other, _) = (first_outputs(pipe, entry, seed) for seed in (0, 1))
    with record(pipe, [Activations("**")]) as recording:
        again = run(pipe, entry)
    assert np.array_equal(result, again)
    placed = {path for path, values in layers_in(recording.profile) if PLACES & set(values.dims)}
    same = {path for path in one if torch.equal(one[path], other[path])}
    assert len(placed) > 15
    assert not placed & same


@pytest.mark.parametrize(
    "name", ["stable-diffusion", "animatediff", "pixart-alpha", "sd3.5", "flux", "flux, Kontext", "qwen-image"]
)
def test_attention_of_image_blocks_looks_from_the_image_and_costs_no_call(name):
    entry = replace(ZOO[name], steps=1)
    pipe = entry.make()
    denoiser, calls = get_denoiser(pipe), []
    blocks = denoiser.layout.image_blocks
    attention = {path for path in denoiser.attention_layers if path.partition(".")[0] in blocks}
    traced = {}

    def kept(*args):
        found = origins_of(*args)
        traced.update(found)
        return found

    origins_of = origins.trace
    with (
        mock.patch.object(Denoiser, "looks_from_image", return_value=False),
        mock.patch.object(origins, "trace", kept),
        record(pipe, [AttentionWeights()]),
    ):
        run(pipe, entry)
    of_sample = {
        path
        for path, runs in traced.items()
        if all(any(any(marks) for tensor in tensors for marks in tensor.values()) for tensors in runs)
    }
    assert attention
    assert attention <= of_sample
    forward = denoiser.module.forward
    with mock.patch.object(denoiser.module, "forward", lambda *a, **k: calls.append(0) or forward(*a, **k)):
        run(pipe, entry)
        plain = len(calls)
        with record(pipe, [AttentionWeights()]):
            run(pipe, entry)
    assert len(calls) == 2 * plain


def layers_in(profile):
    return [(name.partition("/")[2], values) for name, values in profile.items() if "@" not in name]


VIDEO = replace(ZOO["text-to-video"], steps=1)
OVER_TIME = "transformer_in.transformer_blocks.0.attn1"
CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2"
FEED_FORWARD = "mid_block.attentions.0.transformer_blocks.0.ff"


def test_frames_are_told_from_as_many_places():
    entry = replace(VIDEO, call={**VIDEO.call, "num_frames": 16, "height": 8, "width": 8})
    pipe, outputs = entry.make(), []
    with (
        pipe.unet.get_submodule(OVER_TIME).register_forward_hook(lambda m, args, output: outputs.append(output)),
        record(pipe, [Activations(OVER_TIME)]) as recording,
    ):
        run(pipe, entry)
    by_hand = outputs[0].unflatten(0, (2, 4, 4)).permute(0, 4, 3, 1, 2)  # (branch, channel, frame, height, width)
    values = recording.profile[f"activations/{OVER_TIME}"]
    assert values.dims[-3:] == ("frame", "height", "width")
    assert np.array_equal(values.values[0, 0], by_hand.numpy())


def test_slices_of_a_video_are_put_together():
    profiles = []
    for size in (None, 1):
        pipe = VIDEO.make()
        if size is not None:
            pipe.unet.set_attention_slice(size)
        with record(pipe, [AttentionWeights(layers=CROSS), WordMaps(["fox"], layers=CROSS)]) as recording:
            run(pipe, VIDEO)
        profiles.append(recording.profile)
    plain, sliced = profiles
    assert list(plain) == list(sliced)
    for name in plain:
        np.testing.assert_allclose(sliced[name].values, plain[name].values, atol=1e-6)


@pytest.mark.parametrize("chunks", [(2, 0), (1, 1)], ids=["of rows", "of tokens"])
def test_layers_that_run_chunk_by_chunk_are_refused(chunks):
    pipe = VIDEO.make()
    pipe.unet.enable_forward_chunking(*chunks)
    with pytest.raises(ValueError, match="forward chunking is on"), record(pipe, [Activations(FEED_FORWARD)]):
        pass


@pytest.mark.parametrize("counts", [False, True])
def test_a_network_that_cuts_its_text_by_a_mask_has_places_of_its_own_for_every_length(counts, monkeypatch):
    if counts:  # as where runs of a layer differ, which is then counted once, whatever the forms of calls
        monkeypatch.setattr(origins, "_differ", lambda runs: True)
    entry = ZOO["lumina2"]
    call = {name: value for name, value in entry.call.items() if "embeds" not in name and "mask" not in name}
    call |= {"prompt": "a red fox", "negative_prompt": "b", "max_sequence_length": 32, "system_prompt": "a"}
    entry = replace(entry, call=call, steps=2)
    pipe, outputs = entry.make(), []
    config = T5Config(vocab_size=56, d_model=32, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    pipe.register_modules(text_encoder=T5EncoderModel(config).eval(), tokenizer=t5_tokenizer())
    layer = pipe.transformer.layers[0]
    with (
        record(pipe, [Activations("layers.0")]) as recording,
        layer.register_forward_hook(lambda m, args, output: outputs.append(output)),
    ):
        run(pipe, entry)
    values = recording.profile["activations/layers.0"]
    assert recording.run.origins.ran == ({"layers.0": 1} if counts else {})
    assert len(outputs) == 4
    assert outputs[0].shape[1] > outputs[1].shape[1]
    for i, output in enumerate(outputs):  # the image stands behind the text
        by_hand = output[:, -16:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
        told = values.isel(step=i // 2).sel(branch=["cond", "uncond"][i % 2])
        assert np.array_equal(told.values, by_hand.numpy())
