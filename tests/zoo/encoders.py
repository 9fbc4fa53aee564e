"""Text encoders of their own for the entries of the zoo that are given embeddings, so that they take a prompt."""

import inspect
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2
from diffusers.pipelines.wan import pipeline_wan_i2v
from transformers import (
    CLIPImageProcessor,
    CLIPProcessor,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.zoo.entry import Entry
from tests.zoo.parts import clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from tests.zoo.pipelines import ZOO


def _t5(pipe, width):
    pipe.register_modules(text_encoder=t5_encoder(width), tokenizer=t5_tokenizer())


def _umt5(pipe, width=16):
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=56, d_model=width, d_kv=4, d_ff=width, num_layers=1, num_heads=2)
    pipe.register_modules(text_encoder=UMT5EncoderModel(config).eval(), tokenizer=t5_tokenizer())
    # These two call for it whether it is there or not; it mends broken characters, and the prompt has none.
    for module in (pipeline_wan_i2v, pipeline_skyreels_v2):
        vars(module).setdefault("ftfy", types.SimpleNamespace(fix_text=str))


def _clip(pipe):
    pipe.register_modules(text_encoder=clip_encoder(projection=True), tokenizer=clip_tokenizer())


def _hunyuan_dit(pipe):
    lengths = {"text_len": 77, "text_len_t5": 256}  # as its call has them
    torch.manual_seed(0)
    pipe.register_modules(
        transformer=type(pipe.transformer).from_config({**pipe.transformer.config, **lengths}).eval(),
        text_encoder=clip_encoder(32, length=77), tokenizer=clip_tokenizer(77),
        text_encoder_2=t5_encoder(32), tokenizer_2=t5_tokenizer(256),
    )  # fmt: skip


def _language_model(config, model, width, layers=2):
    torch.manual_seed(0)
    return model(
        config(
            vocab_size=56,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )  # fmt: skip
    ).eval()


def _llm(pipe, config, model, width):
    """A language model, whose tokenizer puts what a chat puts around a prompt."""
    tokenizer = t5_tokenizer(32)
    tokenizer.chat_template = "{% for message in messages %}the {{ message['content'] }}{% endfor %} is it"
    pipe.register_modules(text_encoder=_language_model(config, model, width), tokenizer=tokenizer)


def _lumina2(pipe):
    _llm(pipe, Gemma2Config, Gemma2Model, 32)
    pipe.system_prompt = "the"


def _lumina_next(pipe):
    _llm(pipe, Gemma2Config, Gemma2Model, 32)
    pipe.max_sequence_length = 32


def _ovis(pipe):
    _llm(pipe, Qwen3Config, Qwen3Model, 32)
    pipe.system_prompt, pipe.user_prompt_begin_id = "cat ", 6


def _qwen(pipe):
    _llm(pipe, Qwen3Config, Qwen3Model, 16)
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "the cat {} is it", 6


def _flux2(pipe):
    tokenizer = t5_tokenizer(32)
    template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }} {% endfor %}{% endfor %}"
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    processor.chat_template = tokenizer.chat_template = template
    pipe.register_modules(text_encoder=_language_model(MistralConfig, MistralModel, 16), tokenizer=processor)
    pipe.system_message = "the cat"


def _hunyuan_video(pipe):
    pipe.register_modules(
        text_encoder=_language_model(LlamaConfig, LlamaModel, 16, layers=3), tokenizer=t5_tokenizer(32),
        text_encoder_2=clip_encoder(8, length=77), tokenizer_2=clip_tokenizer(77),
    )  # fmt: skip


def _kandinsky_5(pipe):
    tokenizer = t5_tokenizer(64)
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    pipe.register_modules(
        text_encoder=_language_model(Qwen3Config, Qwen3Model, 16), tokenizer=processor,
        text_encoder_2=clip_encoder(8, length=77), tokenizer_2=clip_tokenizer(77),
    )  # fmt: skip
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "the cat {} is it", 6


def _hidream(pipe):
    pooled = {"width": 4, "projection": True, "length": 16}
    pipe.register_modules(
        text_encoder=clip_encoder(**pooled), tokenizer=clip_tokenizer(16),
        text_encoder_2=clip_encoder(**pooled), tokenizer_2=clip_tokenizer(16),
        text_encoder_3=t5_encoder(32), tokenizer_3=t5_tokenizer(),
        text_encoder_4=_language_model(LlamaConfig, LlamaForCausalLM, 16), tokenizer_4=t5_tokenizer(),
    )  # fmt: skip


# The tokens of the word, as the tokenizers spell with letters.
_T5_PLACE, _CLIP_PLACE = {"fox": (4, 7)}, {"fox": (5, 8)}
# Negative prompts of as many tokens, as the judge joins the branches' keys.
_AS_LONG = {"negative_prompt": "a red box"}
_Z_IMAGE = (
    partial(_llm, config=Qwen3Config, model=Qwen3Model, width=16),
    {"max_sequence_length": 32, **_AS_LONG},
    {"words": {"fox": (7, 10)}, "keys": (32, 47)},  # the chat begins with "the"
)

# What registers the encoders, by the entry; what its call takes besides; and what else is other in the entry.
ENCODERS: dict[str, tuple[Callable[[Any], None], dict[str, Any], dict[str, Any]]] = {
    **{
        name: (partial(_t5, width=32), {}, {"words": _T5_PLACE})
        for name in ("cogvideox", "ltx-video", "latte", "allegro", "cogview3-plus")
    },
    "mochi": (partial(_t5, width=32), _AS_LONG, {"words": _T5_PLACE}),
    "deepfloyd-if": (partial(_t5, width=16), {}, {"words": _T5_PLACE, "keys": (0, 77)}),
    "kandinsky-3": (partial(_t5, width=16), {}, {"words": _T5_PLACE}),
    **{name: (_umt5, {}, {"words": _T5_PLACE}) for name in ("wan", "wan, image to video", "skyreels-v2")},
    "stable-cascade, prior": (_clip, {}, {"words": _CLIP_PLACE}),
    "hunyuan-dit": (_hunyuan_dit, {}, {"words": _CLIP_PLACE}),
    "sana": (
        partial(_llm, config=Gemma2Config, model=Gemma2Model, width=16),
        {"complex_human_instruction": ["the"]},
        {"words": {"fox": (5, 8)}},  # of 18 tokens it keeps the first and the last 15
    ),
    "lumina2": (
        _lumina2,
        {"max_sequence_length": 64, "negative_prompt": "the <Prompt Start> a red box"},
        {"words": {"fox": (21, 24)}, "first": 25, "queries": (25, None), "keys": (0, 25)},
    ),
    "lumina-next": (_lumina_next, {}, {"words": _T5_PLACE}),
    "z-image": _Z_IMAGE,
    "z-image, limited guidance": _Z_IMAGE,
    "cogview4": (partial(_llm, config=GlmConfig, model=GlmModel, width=32), {}, {"words": {"fox": (12, 15)}}),
    "ovis-image": (_ovis, {}, {"words": _T5_PLACE}),
    "qwen-image": (_qwen, _AS_LONG, {"words": _T5_PLACE, "queries": (12, None), "keys": (0, 12)}),
    "flux2": (
        _flux2,
        {"text_encoder_out_layers": (1, 2), "max_sequence_length": 32},
        {"words": {"fox": (10, 13)}, "queries": (32, None), "keys": (0, 32)},
    ),
    "hunyuan-video": (
        _hunyuan_video,
        {"prompt_template": {"template": "the cat {}", "crop_start": 6}},
        {"words": _T5_PLACE},
    ),
    "kandinsky-5": (_kandinsky_5, _AS_LONG, {"words": _T5_PLACE}),
    "hidream": (_hidream, {}, {"words": _T5_PLACE}),
}


def with_encoder(name: str) -> Entry:
    """An entry that is given embeddings as one whose pipeline makes them of the prompt "a red fox"."""
    register, more, other = ENCODERS[name]
    entry = ZOO[name]

    def make():
        pipe = entry.make()
        register(pipe)
        return pipe

    def is_made_of_the_prompt(key):
        words = ("prompt_embeds", "attention_mask", "embeds_mask", "cu_seqlens", "negative_prompt")
        return any(word in key for word in words)

    call = {key: value for key, value in entry.call.items() if not is_made_of_the_prompt(key)}
    known = inspect.signature(type(entry.make()).__call__).parameters
    short = {"max_sequence_length": 16, "clean_caption": False}
    call |= {"prompt": "a red fox"} | {key: value for key, value in short.items() if key in known} | more
    return replace(entry, make=make, call=call, **other)
