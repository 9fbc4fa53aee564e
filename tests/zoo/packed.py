"""Transformers that make images, whose latents are packed into tokens."""

from functools import partial

import diffusers
import torch

from tests.zoo.entry import COND, CU, EMBEDS, GIVEN, HOLE, ONE, PICTURE, SIZE, T5_WORDS, T16, Entry
from tests.zoo.parts import around, clip_encoder, clip_tokenizer, embeddings, network, t5_encoder, t5_tokenizer, vae


def _flux(cls="FluxPipeline", in_channels=16):
    transformer = network(
        "FluxTransformer2DModel", patch_size=1, in_channels=in_channels, out_channels=16, num_layers=1,
        num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return around(
        cls, transformer, vae=vae(4, 0.1), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(32), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def _flux_control():
    controlnet = network(
        "FluxControlNetModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return diffusers.FluxControlNetPipeline(**_flux().components, controlnet=controlnet)


def _chroma():
    transformer = network(
        "ChromaTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return around(
        "ChromaPipeline", transformer, vae=vae(4, 0.1), text_encoder=t5_encoder(32), tokenizer=t5_tokenizer()
    )


def _qwen():
    transformer = network(
        "QwenImageTransformer2DModel", patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return around("QwenImagePipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _flux2():
    transformer = network(
        "Flux2Transformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, timestep_guidance_channels=8,
        axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return around("Flux2Pipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _bria():
    transformer = network(
        "BriaTransformer2DModel", in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return around("BriaPipeline", transformer, vae=vae(4, 0.1), text_encoder=t5_encoder(32), tokenizer=t5_tokenizer())


def _ovis():
    transformer = network(
        "OvisImageTransformer2DModel", in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return around("OvisImagePipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


# What the entries of a family have in common.
_of_flux = partial(
    Entry,
    layer="transformer_blocks.0",
    grid=(4, 4),
    branches=COND,
    position=1,
    attention="transformer_blocks.0.attn",
    queries=(16, None),
    keys=(0, 16),
    crosses=("attn",),
    words=T5_WORDS,
    predicts="flow",
)

PACKED: dict[str, Entry] = {
    "flux": _of_flux(
        _flux, {**ONE, "height": 16, "width": 32, **T16}, grid=(4, 8), attention="single_transformer_blocks.0.attn"
    ),
    "flux, image to image": _of_flux(
        lambda: _flux("FluxImg2ImgPipeline"), {**ONE, "image": PICTURE, "strength": 0.7, **SIZE, **T16}, steps=3
    ),
    "flux, true guidance": _of_flux(
        _flux,
        {**ONE, "negative_prompt": "b", "true_cfg_scale": 2.0, "height": 16, "width": 32, **T16},
        grid=(4, 8),
        branches=CU,
    ),
    "chroma": _of_flux(_chroma, {**ONE, "negative_prompt": "b", **SIZE, **T16, "guidance_scale": 3.0}, branches=CU),
    "bria": _of_flux(
        _bria,
        {**ONE, "negative_prompt": "b", **SIZE, **T16, "guidance_scale": 3.0},
        branches=("uncond", "cond"),
    ),
    "ovis-image": _of_flux(
        _ovis,
        {**EMBEDS, "negative_prompt": None, "height": 64, "width": 64, "guidance_scale": 3.0},
        branches=CU,
        words=GIVEN,
    ),
    "qwen-image": _of_flux(
        _qwen,
        {
            "prompt_embeds": embeddings(1, 7, 16),
            "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
            "negative_prompt_embeds": embeddings(1, 7, 16, seed=2),
            "negative_prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
            "true_cfg_scale": 2.0,
            "height": 64,
            "width": 64,
        },
        branches=CU,
        queries=(7, None),
        keys=(0, 7),
        words=GIVEN,
    ),
    "flux, Kontext": _of_flux(
        lambda: _flux("FluxKontextPipeline"),
        {**ONE, "image": PICTURE, "max_area": 256, "_auto_resize": False, **SIZE, **T16},
        attention="single_transformer_blocks.0.attn",
        queries=(16, 32),
    ),
    "flux, ControlNet": _of_flux(_flux_control, {**ONE, "control_image": PICTURE, **SIZE, **T16}),
    "flux, fill": _of_flux(
        lambda: _flux("FluxFillPipeline", in_channels=48),
        {**ONE, "image": PICTURE, "mask_image": HOLE, **SIZE, **T16},
        noisy=(2, 0),
    ),
    "flux2": _of_flux(
        _flux2,
        {"prompt_embeds": embeddings(1, 7, 32), "height": 64, "width": 64},
        attention="single_transformer_blocks.0.attn",
        queries=(7, None),
        keys=(0, 7),
        words=GIVEN,
    ),
}
