"""Tiny tokenizers, text encoders and autoencoders of the real classes, with random weights."""

import string

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)


def clip_tokenizer(length=12):
    pieces = ["<|startoftext|>", "<|endoftext|>"]
    pieces += [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=length)


def clip_encoder(width=16, projection=False, length=12):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=width,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_tokenizer(length=16):
    letters = string.ascii_lowercase
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [("▁" + letter, -3.0) for letter in letters] + [(letter, -3.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def t5_encoder(width=16):
    torch.manual_seed(0)
    config = T5Config(vocab_size=56, d_model=width, d_kv=4, d_ff=width, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def vision_encoder(width=16):
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2, image_size=16,
        patch_size=8, projection_dim=width,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def vae(channels=4, shift=None):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
        shift_factor=shift,
        scaling_factor=0.5,
    ).eval()


def embeddings(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditional_unet(cls="UNet2DConditionModel", **config):
    torch.manual_seed(0)
    defaults = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }
    return getattr(diffusers, cls)(**{**defaults, **config}).eval()


def network(cls, seed=0, **config):
    torch.manual_seed(seed)
    return getattr(diffusers, cls)(**config).eval()


def around(cls, transformer, scheduler=None, **more):
    return getattr(diffusers, cls)(
        transformer=transformer, scheduler=scheduler or FlowMatchEulerDiscreteScheduler(), **more
    )
