import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers import (
    CLIPImageProcessor,
    CLIPProcessor,
    MistralConfig,
    MistralModel,
    T5Config,
    T5EncoderModel,
)

from diffusers_xai import Activations, AttentionWeights, PromptSwitch, WordMaps, record
from diffusers_xai.recording.text import UnknownWordError
from tests.zoo.encoders import with_encoder
from tests.zoo.oracles import word_map
from tests.zoo.parts import embeddings, t5_tokenizer
from tests.zoo.pipelines import ZOO
from tests.zoo.running import run, spied
from tests.zoo.tokenizers import qwen2_tokenizer


@pytest.mark.parametrize(
    ("name", "behind"), [("stable-audio", ["[start]", "[end]"]), ("stable-audio-3", ["[seconds]"])]
)
def test_durations_of_sound_stand_behind_the_tokens_of_the_prompt(name, behind):
    text = strings(ZOO[name]).sel(branch="cond").values
    assert text[0].tolist() == [*T5_FOX, *["<pad>"] * 8, *behind]
    assert text[1].tolist() == ["a", "c", "a", "t", "</s>", *["<pad>"] * 11, *behind]


def recorded(entry, specs, edits=(), **components):
    pipe = entry.make()
    pipe.register_modules(**components)
    with record(pipe, specs, edits=edits) as recording:
        run(pipe, entry)
    return recording.profile


def strings(entry, edits=(), **components):
    """What is told of the text in the entry's attention layer."""
    specs = [AttentionWeights(layers=entry.attention, relation="image_to_text")]
    array = next(iter(recorded(entry, specs, edits, **components).values()))
    return array["text"] if "text" in array.coords else array["token"]


def calling(name, steps=1, **call):
    return replace(ZOO[name], call={**ZOO[name].call, **call}, steps=steps)


def clip(*pieces):
    return ["<|startoftext|>", *pieces, *["<|endoftext|>"] * (11 - len(pieces))]


T5_FOX = ["a", "r", "e", "d", "f", "o", "x", "</s>"]
CLIP_FOX = clip(*"aredfox")
PADS = ["<pad>"] * 4


def test_the_strings_are_those_of_the_encoder_whose_output_arrives():
    # Both encoders of Flux have twelve tokens; CLIP's are pooled.
    entry = replace(calling("flux", max_sequence_length=12), queries=(12, None), keys=(0, 12))
    assert strings(entry).values.tolist() == [*T5_FOX, *PADS]
    maps = recorded(entry, [WordMaps(["fox"])])["word_maps"]
    seen = spied(entry.make(), entry)
    np.testing.assert_allclose(
        maps.isel(step=0).sel(token="fox").values, word_map(seen, entry, 0, entry.words["fox"]), atol=1e-6
    )


def test_encoders_stand_one_behind_the_other_and_what_is_left_out_has_no_words():
    entry = calling("sd3", max_sequence_length=12, negative_prompt="b")
    both, fox = strings(entry), [*T5_FOX, *PADS]
    assert both.sel(branch="cond").values.tolist() == [*CLIP_FOX, *fox]
    assert both.sel(branch="uncond").values.tolist() == [*clip("b"), "b", "</s>", *["<pad>"] * 10]
    without = strings(entry, text_encoder_3=None, tokenizer_3=None)
    assert without.sel(branch="cond").values.tolist() == [*CLIP_FOX, *[""] * 12]
    with pytest.raises(UnknownWordError, match="'cat'"):
        recorded(replace(entry, call={**entry.call, "prompt_3": "a cat"}), [WordMaps(["cat"])], text_encoder_3=None)
    other = strings(replace(entry, call={**entry.call, "prompt_2": "a cat"}))
    assert other.sel(branch="cond").values[1:5].tolist() == ["a", "r | c", "e | a", "d | t"]


def test_an_image_prompt_with_as_many_tokens_as_the_text_has_no_words():
    entry = calling("stable-diffusion, IP-Adapter", ip_adapter_image_embeds=[embeddings(2, 12, 16)])
    specs = [AttentionWeights(layers=entry.attention), Activations("**.to_k_ip.0")]
    profile = recorded(entry, specs)
    told = {name: {"text", "token"} & set(array.coords) for name, array in profile.items()}
    assert told.pop(f"attention_weights/{entry.attention}") == {"text"}
    assert len(told) > 1
    assert not any(told.values())


def test_a_network_may_join_its_texts_in_an_order_of_its_own():
    entry = with_encoder("hidream")
    told = strings(replace(entry, call={**entry.call, "prompt_4": "a cat"}))
    cat = ["a", "c", "a", "t", "</s>", *["<pad>"] * 11]  # of Llama's last layer, and of that of the block
    assert told.sel(branch="cond").values.tolist() == [*T5_FOX, *["<pad>"] * 8, *cat, *cat]
    told = strings(with_encoder("stable-cascade, prior"))  # behind the text are four pooled ones, and an image's
    assert told.sel(branch="cond").values.tolist() == [*CLIP_FOX, *[""] * 8]


@pytest.mark.parametrize(
    ("name", "call", "cond", "uncond"),
    [
        ("stable-diffusion, image to image", {"negative_prompt": "ugly"}, CLIP_FOX, clip(*"ugly")),
        ("stable-diffusion, image to image", {}, CLIP_FOX, clip()),
        ("stable-diffusion-xl, image to image", {}, CLIP_FOX, [""] * 12),  # zeros, unless there is a negative prompt
        ("chroma", {}, [*T5_FOX, *["<pad>"] * 8], ["b", "</s>", *["<pad>"] * 14]),  # a call each
    ],
)
def test_every_branch_has_the_tokens_of_its_own_prompt(name, call, cond, uncond):
    text = strings(calling(name, 3 if "strength" in ZOO[name].call else 1, **call))
    assert text.dims == ("branch", "token")
    assert text.sel(branch="cond").values.tolist() == cond
    assert text.sel(branch="uncond").values.tolist() == uncond


def in_two_lengths(steps=1, **call):
    """Lumina, which cuts its text, as an entry and components."""
    entry = calling("lumina2", steps, max_sequence_length=32, system_prompt="a", **call)
    for name in [name for name in entry.call if "embeds" in name or "mask" in name]:
        del entry.call[name]
    config = T5Config(vocab_size=56, d_model=32, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    return entry, {"text_encoder": T5EncoderModel(config).eval(), "tokenizer": t5_tokenizer()}


def test_prompts_of_two_lengths_are_filled_up_to_the_longer_one():
    entry, encoder = in_two_lengths(prompt="a red fox", negative_prompt="b")
    specs = [AttentionWeights(layers=entry.attention, relation="image_to_text"), WordMaps(["fox"])]
    weights = recorded(entry, specs, **encoder)[f"attention_weights_image_to_text/{entry.attention}"]
    uncond = weights.sel(branch="uncond")
    assert uncond["text"].values.tolist() == ["b", "</s>", *[""] * (weights.sizes["token"] - 2)]
    assert weights.sel(branch="cond")["text"].values[-8:].tolist() == T5_FOX
    assert not np.isnan(weights.sel(branch="cond")).any()
    assert np.isnan(uncond).all(["step", "sample", "head"]).values.tolist() == [False] * 2 + [True] * (
        weights.sizes["token"] - 2
    )


@pytest.mark.parametrize("folder", [None, "profile"])
def test_a_branch_that_is_left_out_later_keeps_its_longer_text(folder, tmp_path):
    call = {"prompt": "b", "negative_prompt": "a red fox and a blue box", "cfg_trunc_ratio": 0.5}
    entry, encoder = in_two_lengths(steps=2, **call)
    specs = [AttentionWeights(layers=entry.attention, relation="image_to_text")]
    pipe = entry.make()
    pipe.register_modules(**encoder)
    with record(pipe, specs, profile_dir=folder and tmp_path / folder) as recording:
        run(pipe, entry)
    weights = recording.profile[f"attention_weights_image_to_text/{entry.attention}"]
    tokenizer = t5_tokenizer()
    longer = [
        string.strip("▁") for string in tokenizer.convert_ids_to_tokens(tokenizer(call["negative_prompt"]).input_ids)
    ]
    assert weights["text"].sel(branch="uncond").values.tolist() == longer
    shorter = [bool(text) for text in weights["text"].sel(branch="cond").values]
    assert 0 < sum(shorter) < len(longer)
    is_there = ~np.isnan(weights).all(["sample", "head"])
    assert is_there.sel(branch="cond").values.tolist() == [shorter] * 2
    assert is_there.sel(branch="uncond").values.tolist() == [[True] * len(longer), [False] * len(longer)]


def test_words_of_bytes_that_a_processor_of_texts_and_images_made():
    # Flux2's own PixtralProcessor needs torchvision; this one is as real, and shares its base.
    prompt, tokenizer = "le café: 红狐狸 beside a fox", qwen2_tokenizer()
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }} {% endfor %}{% endfor %}"
    processor.chat_template = tokenizer.chat_template = template
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    encoder = MistralModel(config).eval()
    call = {"prompt": prompt, "text_encoder_out_layers": (1, 2), "max_sequence_length": 64}
    entry = calling("flux2", 1, **call)
    del entry.call["prompt_embeds"]
    specs = [AttentionWeights(relation="image_to_text", queries="all"), WordMaps(["café", "红狐狸"])]
    pipe = entry.make()
    pipe.register_modules(text_encoder=encoder, tokenizer=processor)
    pipe.system_message = "a cat"
    with record(pipe, specs) as recording:
        run(pipe, entry)
    text = f"a cat {prompt} "
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    maps = recording.profile["word_maps"].isel(step=0, sample=0)
    layers = [array.isel(step=0, sample=0).mean("head") for name, array in recording.profile.items() if "/" in name]
    for word in ("café", "红狐狸"):
        first = text.index(word)
        places = [i for i, (start, stop) in enumerate(offsets) if start < first + len(word) and first < stop]
        assert len(places) > len(word) - 2
        assert {string for array in layers for string in array["token"].values[places]} & set(word)
        expected = sum(array.isel(token=places).mean("token").values for array in layers) / len(layers)
        np.testing.assert_allclose(maps.sel(token=word).values, expected, atol=1e-6)
    given = f"'cafe'; what image 0 is given: '{text}<"
    with pytest.raises(UnknownWordError, match=given), record(pipe, [WordMaps("cafe")]):
        run(pipe, entry)


def test_another_thread_may_use_the_encoder_and_another_one_run_the_pipeline():
    entry, modes = calling("stable-diffusion, image to image", 3), []
    pipe = entry.make()

    def elsewhere():
        pipe.text_encoder(torch.zeros(1, 12, dtype=torch.long))
        modes.append(_get_current_dispatch_mode())

    with record(pipe, [AttentionWeights(layers=entry.attention)]) as recording:
        for work in (elsewhere, lambda: run(pipe, entry)):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert modes == [None]
    assert (
        recording.profile[f"attention_weights/{entry.attention}"]["text"].sel(branch="cond").values.tolist()
        == CLIP_FOX
    )


def test_from_a_switch_on_the_words_are_those_of_the_other_prompt(tmp_path):
    entry = calling("stable-diffusion", 3, prompt="a red fox")
    edits = [PromptSwitch(to="fox a dog", from_step=2)]
    specs = [AttentionWeights(layers=entry.attention), WordMaps(["fox"])]
    pipe = entry.make()
    with record(pipe, specs, edits=edits, profile_dir=tmp_path / "profile") as recording:
        run(pipe, entry)
    text = recording.profile[f"attention_weights/{entry.attention}"]["text"]
    assert text.dims == ("step", "branch", "token")
    other = clip(*"foxadog")
    assert text.sel(branch="cond").values.tolist() == [CLIP_FOX, CLIP_FOX, other]
    assert text.sel(branch="uncond").values.tolist() == [clip()] * 3
    weights = recorded(entry, [AttentionWeights(relation="image_to_text", queries="all")], edits)
    for step, fox in enumerate([slice(5, 8), slice(5, 8), slice(1, 4)]):
        maps = [
            array.sel(step=step, branch="cond").isel(sample=0, token=fox).mean(["head", "token"]).values
            for array in weights.values()
        ]
        enlarged = [F.interpolate(torch.tensor(m)[None, None], (8, 8), mode="bilinear")[0, 0] for m in maps]
        told = recording.profile["word_maps"].sel(step=step, token="fox").isel(sample=0).values
        np.testing.assert_allclose(told, torch.stack(enlarged).mean(dim=0), atol=1e-6)
    with pytest.raises(UnknownWordError, match="'red'; what image 0 is given at step 2: '<.*>fox a dog<"):
        recorded(entry, [WordMaps(["red"])], edits)
    assert recorded(entry, [WordMaps(["red"], steps=[0, 1])], edits)["word_maps"].sizes["step"] == 2
    assert recorded(entry, [WordMaps(["dog"], steps=2)], edits)["word_maps"].sizes["step"] == 1


@pytest.mark.parametrize("announced", [True, False])
def test_what_a_callback_puts_in_for_the_prompt_has_no_words(announced):
    entry, held = calling("stable-diffusion, image to image", 6), []

    def change(pipe, step, t, inputs):
        if step == 0:
            turned = held[-1].flip(1)
            if announced:
                return {"prompt_embeds": turned}
            held[-1].copy_(turned)
        return {}

    entry.call["callback_on_step_end"] = change
    if announced:
        entry.call["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]

    def sample(specs):
        pipe = entry.make()
        pipe.unet.register_forward_pre_hook(
            lambda m, args, kw: held.append(kw["encoder_hidden_states"]), with_kwargs=True
        )
        with record(pipe, specs) as recording:
            run(pipe, entry)
        return recording.profile

    weights, words = AttentionWeights(layers=entry.attention), WordMaps(["fox"])
    with pytest.raises(RuntimeError, match="at step 1, whose words are not known"):
        sample([words])
    assert sample([replace(words, steps=0)])["word_maps"].sizes["step"] == 1
    if announced:
        text = sample([weights])[f"attention_weights/{entry.attention}"]["text"].sel(branch="cond")
        assert text.values.tolist() == [CLIP_FOX, *[[""] * 12] * (text.sizes["step"] - 1)]
    else:
        with pytest.raises(RuntimeError, match="at step 1, whose words are not known"):
            sample([weights])


def test_two_recordings_may_share_a_text_encoder():
    entry, other = (calling("stable-diffusion", 2, prompt=prompt) for prompt in ("a red fox", "a dog"))
    one, two = entry.make(), other.make()
    two.register_modules(text_encoder=one.text_encoder)
    specs = [AttentionWeights(layers=entry.attention)]
    with record(one, specs) as first, record(two, specs) as second:
        run(two, other)
        run(one, entry)
    name = f"attention_weights/{entry.attention}"
    told = [recording.profile[name]["text"].sel(branch="cond").values.tolist() for recording in (first, second)]
    assert told == [CLIP_FOX, clip(*"adog")]


class EveryStep(StableDiffusionPipeline):
    """Another prompt at every step, another negative one, or both, or one that is encoded first in the loop.

    A prompt that is given as a list is encoded at every step, one that is a text once, `before` the loop or in it.
    """

    @torch.no_grad()
    def __call__(
        self, prompt, negative_prompt=("", "", ""), before=True, swap=False, change=None, generator=None,
        num_inference_steps=3, **_,
    ):  # fmt: skip
        self._guidance_scale = 3.0
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        texts = {"cond": prompt, "uncond": negative_prompt}
        once = {name: text for name, text in texts.items() if isinstance(text, str)}
        encoded = {name: self._encoded(text) for name, text in once.items()} if before else {}
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(self.scheduler.timesteps):
                for name, text in texts.items():
                    if name not in once or name not in encoded:
                        encoded[name] = self._encoded(text if name in once else text[i])
                if swap and i == 1:
                    encoded["cond"] = encoded["cond"].flip(1)
                both = torch.cat([encoded["uncond"], encoded["cond"]])
                noise = self.unet(torch.cat([latents] * 2), t, both).sample
                noise = noise[:1] + 3.0 * (noise[1:] - noise[:1])
                latents = self.scheduler.step(noise, t, latents).prev_sample
                if change is not None and i == 0:
                    change(encoded["cond"])
                bar.update()
        return (latents,)

    def _encoded(self, text):
        return self.encode_prompt(text, "cpu", 1, False)[0]


def every_step(**call):
    entry = calling("stable-diffusion", 3, **call)
    return entry, EveryStep(**entry.make().components, requires_safety_checker=False)


def test_a_pipeline_may_encode_its_prompt_at_every_step():
    entry, pipe = every_step(prompt=["a red fox", "a red fox", "fox a dog"])
    specs = [AttentionWeights(layers=entry.attention), WordMaps(["fox"])]
    with record(pipe, specs) as recording:
        again = run(pipe, entry)
    assert np.array_equal(again, run(pipe, entry))
    text = recording.profile[f"attention_weights/{entry.attention}"]["text"]
    assert text.dims == ("step", "branch", "token")
    assert text.sel(branch="cond").values.tolist() == [CLIP_FOX, CLIP_FOX, clip(*"foxadog")]
    assert text.sel(branch="uncond").values.tolist() == [clip()] * 3
    maps = recording.profile["word_maps"].isel(sample=0)
    with record(pipe, [WordMaps(["fox"], steps=0)]) as recording:
        run(pipe, entry)
    assert np.array_equal(recording.profile["word_maps"].isel(step=0, sample=0), maps.sel(step=0))
    with (
        pytest.raises(UnknownWordError, match="'red'; what image 0 is given at step 2: '<.*>fox a dog<"),
        record(pipe, [WordMaps(["red"])]),
    ):
        run(pipe, entry)
    with record(pipe, [WordMaps(["red"], steps=[0, 1])]) as recording:
        run(pipe, entry)
    assert recording.profile["word_maps"].sizes["step"] == 2


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [(["a red fox", "a red fox", "fox a dog"], "b"), ("a red fox", ["b", "dog", "ugly"])],
)
def test_one_prompt_may_be_encoded_once_and_the_other_at_every_step(prompt, negative):
    entry, pipe = every_step(prompt=prompt, negative_prompt=negative)
    specs = [AttentionWeights(layers=entry.attention, relation="image_to_text"), WordMaps(["fox"])]
    with record(pipe, specs) as recording:
        run(pipe, entry)
    weights = recording.profile[f"attention_weights_image_to_text/{entry.attention}"]
    for branch, texts in (("cond", prompt), ("uncond", negative)):
        texts = [texts] * 3 if isinstance(texts, str) else texts
        assert weights["text"].sel(branch=branch).values.tolist() == [clip(*text.replace(" ", "")) for text in texts]
    assert recording.profile["word_maps"].sizes["step"] == 3


def test_what_is_written_into_a_prompt_that_was_encoded_once_goes_with_its_words():
    specs, found = [AttentionWeights(layers="mid_block.attentions.0.transformer_blocks.0.attn2")], []
    for change in (lambda held: held.copy_(held.flip(1)), lambda held: held.fill_(0.5)):
        entry, pipe = every_step(prompt="a red fox", negative_prompt=["b", "dog", "ugly"], change=change)
        with record(pipe, specs) as recording:
            changed = run(pipe, entry)
        assert np.array_equal(changed, run(pipe, entry))
        found.append(recording.profile[f"attention_weights/{entry.attention}"]["text"].sel(branch="cond").values)
    turned, noise = (text.tolist() for text in found)
    assert turned[0] == noise[0] == CLIP_FOX
    assert noise[1:] == [[""] * 12] * 2
    assert turned[1:] == [CLIP_FOX[::-1]] * 2


def test_a_prompt_that_is_encoded_once_in_the_loop_is_that_of_every_step():
    entry, pipe = every_step(prompt="a red fox", negative_prompt="b", before=False)
    specs = [AttentionWeights(layers=entry.attention)]
    with record(pipe, specs) as recording:
        run(pipe, entry)
    text = recording.profile[f"attention_weights/{entry.attention}"]["text"]
    assert text.sel(branch="cond").values.tolist() == [CLIP_FOX] * 3
    steps = []
    pipe.unet.register_forward_hook(lambda *_: steps.append(len(steps)))
    with (
        pytest.raises(UnknownWordError, match="'dog'.* at step 2: '<.*>a red fox"),
        record(pipe, [WordMaps("dog", steps=2)]),
    ):
        run(pipe, entry)
    assert steps == [0]
    entry.call["swap"] = True
    with pytest.raises(RuntimeError, match="at step 1, whose words are not known"), record(pipe, specs):
        run(pipe, entry)
