"""The parts of the text-to-image model: an autoencoder that changes nothing, and a tokenizer of whole words."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from training.caption_model import (
    MAX_TOKENS,
    build_pipeline,
    build_text_encoder,
    build_tokenizer,
    identity_autoencoder,
    tokenize,
)


CAPTIONS = ["a smiling man with bangs", "a woman, blue background"]
SCHEDULER = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.float16, 4e-3)])
@pytest.mark.parametrize("size", [(16, 16), (32, 24)])
@torch.no_grad()
def test_latents_are_the_pixels(dtype, tolerance, size):
    """To far less than a step of 8 bits (0.008), for flat and for noisy pictures."""
    vae = identity_autoencoder().to(dtype)
    noisy = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.cat([noisy, torch.ones_like(noisy), -torch.ones_like(noisy), torch.zeros_like(noisy)]).to(dtype)
    latents = vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(1))
    assert (latents - images).abs().max() < tolerance
    assert (vae.decode(images).sample - images).abs().max() < tolerance


def test_a_word_of_the_captions_is_one_token_and_another_is_spelled(tmp_path):
    tokenizer = build_tokenizer(CAPTIONS)
    for text in CAPTIONS:
        pieces = text.replace(",", " ,").split()
        assert tokenizer.tokenize(text) == [f"{piece}</w>" for piece in pieces]
    assert tokenizer.tokenize("A Fox") == ["a</w>", "f", "o", "x</w>"]
    ids = tokenize(tokenizer, ["a fox", ""])
    assert ids.shape == (2, MAX_TOKENS)
    end = tokenizer.eos_token_id
    assert (ids[0] == end).nonzero()[0].item() == 5  # start, a, f, o, x
    assert ids[1].tolist() == [tokenizer.bos_token_id] + [end] * (MAX_TOKENS - 1)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert torch.equal(tokenize(again, ["a fox", ""]), ids)
    assert again.model_max_length == MAX_TOKENS


@torch.no_grad()
def test_plain_diffusers_opens_the_pipeline_and_its_pictures_are_its_latents(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CAPTIONS)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    )  # fmt: skip
    build_pipeline(build_text_encoder(tokenizer, 32, 1), unet, tokenizer, SCHEDULER).save_pretrained(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline) is StableDiffusionPipeline
    images = {
        kind: pipeline(
            CAPTIONS, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type=kind
        ).images
        for kind in ("pt", "latent")
    }
    assert images["pt"].shape == (2, 3, 8, 8)
    torch.testing.assert_close(images["pt"], (images["latent"] / 2 + 0.5).clamp(0, 1), atol=1e-3, rtol=0)
    assert not torch.equal(images["pt"][0], images["pt"][1])
