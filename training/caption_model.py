"""A small text-to-image model: a `StableDiffusionPipeline` on pixels that knows the words of its captions."""

import json
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


MAX_TOKENS = 24
_VOCABULARY_LIMIT = 4096
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"
_CARRIER = 64.0  # of the autoencoder, see there: large against pixels, small enough for half precision


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer to which every word of the captions is one token; other words are spelled."""
    letters = [letter + end for letter in _ALPHABET for end in ("", "</w>")]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    spelling = CLIPTokenizer(vocab=vocabulary, merges=[])
    trained = spelling.train_new_from_iterator(
        [list(captions)], _VOCABULARY_LIMIT, initial_alphabet=list(_ALPHABET), show_progress=False
    )
    pairs = json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]
    for pair in pairs:  # the training leaves out letters that no caption has
        vocabulary.setdefault("".join(pair), len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in pairs], model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModel:
    """A CLIP text encoder of this width and depth for the tokenizer's words, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=MAX_TOKENS,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids as the pipeline makes them, int64 (caption, token)."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def identity_autoencoder() -> AutoencoderKL:
    """An autoencoder whose latents are the pixels, so that a latent pipeline works on pixels.

    Built, not trained. Its convolutions carry s, -s, c and -c for a constant c much greater than the pixels s: a group
    norm over all of them only scales, as its variance is that of c, and SiLU(s) - SiLU(-s) = s.
    """
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=3, block_out_channels=(8,), layers_per_block=1,
        norm_num_groups=1, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    for parameter in vae.parameters():
        parameter.zero_()  # residual blocks add nothing
    for part in (vae.encoder, vae.decoder):
        for i in range(3):
            part.conv_in.weight[i, i, 1, 1], part.conv_in.weight[i + 3, i, 1, 1] = 1.0, -1.0
            part.conv_out.weight[i, i, 1, 1], part.conv_out.weight[i, i + 3, 1, 1] = 1.0, -1.0
        part.conv_in.bias[6], part.conv_in.bias[7] = _CARRIER, -_CARRIER
        part.conv_norm_out.weight.fill_(_CARRIER / 2)  # two of eight channels carry c: the deviation is c / 2
    vae.encoder.conv_out.bias[3:] = -30.0  # log variance of the latents: none
    return vae.eval()


def build_pipeline(
    text_encoder: CLIPTextModel, unet: UNet2DConditionModel, tokenizer: CLIPTokenizer, scheduler: dict
) -> StableDiffusionPipeline:
    """The parts as a pipeline for plain diffusers; `scheduler` holds the arguments of `DDPMScheduler` in training."""
    shared = {name: scheduler[name] for name in ("beta_schedule", "beta_start", "beta_end", "prediction_type")}
    return StableDiffusionPipeline(
        vae=identity_autoencoder(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**shared, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
