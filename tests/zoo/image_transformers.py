"""Transformers that make images, whose latents are images too."""

from functools import partial

import diffusers
from diffusers import DDIMScheduler

from tests.zoo.entry import (
    CLIP_WORDS,
    COND,
    CU,
    EMBEDS,
    EMBEDS16,
    GIVEN,
    MASKS,
    ONE,
    ONES,
    PICTURE,
    SIZE,
    T5_WORDS,
    T16,
    Entry,
)
from tests.zoo.parts import (
    around,
    clip_encoder,
    clip_tokenizer,
    embeddings,
    network,
    t5_encoder,
    t5_tokenizer,
    vae,
)


def _dit():
    transformer = network(
        "DiTTransformer2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, in_channels=4, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(clip_sample=False))


def _pixart(cls="PixArtAlphaPipeline", **more):
    transformer = network(
        "PixArtTransformer2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=32, in_channels=4, cross_attention_dim=16, out_channels=8,
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return around(
        cls, transformer, DDIMScheduler(clip_sample=False), vae=vae(), text_encoder=t5_encoder(32),
        tokenizer=t5_tokenizer(), **more,
    )  # fmt: skip


def _hunyuan_dit():
    transformer = network(
        "HunyuanDiT2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=16,
        activation_fn="gelu-approximate", text_len=12, text_len_t5=16, use_style_cond_and_image_meta_size=False,
        learn_sigma=True,
    )  # fmt: skip
    return around(
        "HunyuanDiTPipeline", transformer, DDIMScheduler(clip_sample=False), vae=vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sd3(dual=False, cls="StableDiffusion3Pipeline", **more):
    transformer = network(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,) if dual else (),
    )  # fmt: skip
    return around(
        cls, transformer, vae=vae(4, 0.1), text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(projection=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(32), tokenizer_3=t5_tokenizer(), **more,
    )  # fmt: skip


def _aura():
    transformer = network(
        "AuraFlowTransformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    return around("AuraFlowPipeline", transformer, vae=vae(), text_encoder=t5_encoder(32), tokenizer=t5_tokenizer())


def _sana():
    transformer = network(
        "SanaTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=8,
    )  # fmt: skip
    return around("SanaPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _lumina2():
    transformer = network(
        "Lumina2Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return around("Lumina2Pipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _z_image():
    transformer = network(
        "ZImageTransformer2DModel", in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return around("ZImagePipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _cogview4():
    transformer = network(
        "CogView4Transformer2DModel", patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4, sample_size=8,
        rope_axes_dim=(8, 8), pos_embed_max_size=8,
    )  # fmt: skip
    return around("CogView4Pipeline", transformer, vae=vae(), text_encoder=None, tokenizer=None)


def _hidream():
    transformer = network(
        "HiDreamImageTransformer2DModel", patch_size=2, in_channels=4, out_channels=4, num_layers=1,
        num_single_layers=1, attention_head_dim=8, num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=8,
        num_routed_experts=2, num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(8, 8),
        llama_layers=(0, 1),
    )  # fmt: skip
    names = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3", "_4")]
    pipe = around("HiDreamImagePipeline", transformer, vae=None, **dict.fromkeys(names))
    pipe.default_sample_size = 8  # it scales every size up to this one
    return pipe


def _cogview3():
    transformer = network(
        "CogView3PlusTransformer2DModel", patch_size=2, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=4, num_attention_heads=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4,
        pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    return around("CogView3PlusPipeline", transformer, scheduler, vae=vae(), text_encoder=None, tokenizer=None)


def _lumina_next():
    transformer = network(
        "LuminaNextDiT2DModel", sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, cross_attention_dim=32,
    )  # fmt: skip
    return around("LuminaPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


# What the entries of a family have in common.
_of_pixart = partial(
    Entry,
    layer="transformer_blocks.0",
    grid=(4, 4),
    attention="transformer_blocks.0.attn2",
    words=T5_WORDS,
)
_of_sd3 = partial(
    Entry,
    layer="transformer_blocks.0",
    grid=(4, 4),
    position=1,
    attention="transformer_blocks.0.attn",
    queries=(0, 16),
    keys=(16, None),
    crosses=("attn",),
    words=CLIP_WORDS,
    predicts="flow",
)
_of_z_image = partial(
    Entry,
    layer="layers.0",
    grid=(4, 4),
    branches=CU,
    attention="layers.0.attention",
    queries=(0, 16),
    keys=(32, 39),
    crosses=("layers.0.attention", "layers.1.attention"),
    text_only=("context_refiner",),
    words=GIVEN,
    predicts="-flow",
)

IMAGE_TRANSFORMERS: dict[str, Entry] = {
    "dit": Entry(
        _dit,
        {"class_labels": [1, 2], "guidance_scale": 3.0},
        "transformer_blocks.0",
        (4, 4),
        CU,
        attention="transformer_blocks.0.attn1",
        doubled=True,
        output="np",
    ),
    "dit, unguided": Entry(
        _dit,
        {"class_labels": [1, 2], "guidance_scale": 1.0},
        "transformer_blocks.0",
        (4, 4),
        COND,
        attention="transformer_blocks.0.attn1",
        output="np",
    ),
    "pixart-alpha": _of_pixart(
        _pixart, {**ONE, **SIZE, **T16, "use_resolution_binning": False, "clean_caption": False}
    ),
    "pixart-sigma": _of_pixart(
        lambda: _pixart("PixArtSigmaPipeline"),
        {**ONE, **SIZE, **T16, "use_resolution_binning": False, "clean_caption": False},
    ),
    "hunyuan-dit": Entry(
        _hunyuan_dit,
        {
            **SIZE,
            "prompt_embeds": embeddings(1, 12, 32),
            "prompt_embeds_2": embeddings(1, 16, 32),
            "negative_prompt_embeds": embeddings(1, 12, 32, seed=2),
            "negative_prompt_embeds_2": embeddings(1, 16, 32, seed=2),
            "prompt_attention_mask": ONES[:, :12],
            "prompt_attention_mask_2": ONES,
            "negative_prompt_attention_mask": ONES[:, :12],
            "negative_prompt_attention_mask_2": ONES,
            "use_resolution_binning": False,
        },
        "blocks.0",
        (4, 4),
        attention="blocks.0.attn2",
        words=GIVEN,
    ),
    "sd3": _of_sd3(_sd3, {**ONE, **SIZE, **T16}),
    "sd3.5": _of_sd3(lambda: _sd3(dual=True), {**ONE, **SIZE, **T16}),
    "sd3, image to image": _of_sd3(
        lambda: _sd3(cls="StableDiffusion3Img2ImgPipeline"),
        {**ONE, "image": PICTURE, "strength": 0.7, **SIZE, **T16},
        steps=3,
    ),
    "auraflow": Entry(
        _aura,
        {**ONE, **SIZE, **T16},
        "joint_transformer_blocks.0",
        (4, 4),
        position=1,
        attention="joint_transformer_blocks.0.attn",
        queries=(24, None),
        keys=(8, 24),
        crosses=("attn",),
        words=T5_WORDS,
        predicts="flow",
    ),
    "sana": Entry(
        _sana,
        {**EMBEDS16, **MASKS, "height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None},
        "transformer_blocks.0",
        (8, 8),
        attention="transformer_blocks.0.attn2",
        words=GIVEN,
        predicts="flow",
    ),
    "lumina2": Entry(
        _lumina2,
        {**EMBEDS, **MASKS, "height": 64, "width": 64, "cfg_normalization": False},
        "layers.0",
        (4, 4),
        CU,
        attention="layers.0.attn",
        first=16,
        queries=(16, None),
        keys=(0, 16),
        crosses=("layers.0.attn", "layers.1.attn"),
        text_only=("context_refiner",),
        words=GIVEN,
        predicts="-flow",
    ),
    "z-image": _of_z_image(
        _z_image,
        {
            "prompt_embeds": [embeddings(7, 16)],
            "negative_prompt_embeds": [embeddings(7, 16, seed=2)],
            "height": 64,
            "width": 64,
        },
    ),
    "z-image, limited guidance": _of_z_image(
        _z_image,
        {
            "prompt_embeds": [embeddings(7, 16)],
            "negative_prompt_embeds": [embeddings(7, 16, seed=2)],
            "cfg_normalization": True,
            "height": 64,
            "width": 64,
        },
    ),
    "cogview4": Entry(
        _cogview4,
        {**EMBEDS, **SIZE, "original_size": (16, 16)},
        "transformer_blocks.0",
        (4, 4),
        CU,
        attention="transformer_blocks.0.attn1",
        queries=(16, None),
        keys=(0, 16),
        crosses=("attn1",),
        words=GIVEN,
        predicts="flow",
    ),
    "pixart-sigma, perturbed attention": _of_pixart(
        lambda: _pixart("PixArtSigmaPAGPipeline", pag_applied_layers=["blocks.1"]),
        {**ONE, **SIZE, **T16, "use_resolution_binning": False, "clean_caption": False, "pag_scale": 2.0},
        branches=("uncond", "cond", "perturbed"),
    ),
    "sd3, perturbed attention": _of_sd3(
        lambda: _sd3(cls="StableDiffusion3PAGPipeline", pag_applied_layers=["blocks.1"]),
        {**ONE, **SIZE, **T16, "pag_scale": 2.0},
        branches=("uncond", "cond", "perturbed"),
    ),
    "hidream": Entry(
        _hidream,
        {
            "prompt_embeds_t5": embeddings(1, 5, 32),
            "prompt_embeds_llama3": embeddings(2, 1, 7, 16),
            "pooled_prompt_embeds": embeddings(1, 8),
            "negative_prompt_embeds_t5": embeddings(1, 5, 32, seed=2),
            "negative_prompt_embeds_llama3": embeddings(2, 1, 7, 16, seed=2),
            "negative_pooled_prompt_embeds": embeddings(1, 8, seed=2),
            "height": 64,
            "width": 64,
        },
        "double_stream_blocks.0",
        (4, 4),
        attention="double_stream_blocks.0.block.attn1",
        queries=(0, 16),
        keys=(16, None),
        crosses=("attn1",),
        words=GIVEN,
        predicts="-flow",
    ),
    "cogview3-plus": Entry(
        _cogview3,
        {**EMBEDS, **SIZE, "original_size": (16, 16)},
        "transformer_blocks.0",
        (4, 4),
        attention="transformer_blocks.0.attn1",
        queries=(16, None),
        keys=(0, 16),
        crosses=("attn1",),
        words=GIVEN,
        predicts="v",
    ),
    "lumina-next": Entry(
        _lumina_next,
        {**EMBEDS, **MASKS, "height": 64, "width": 64, "clean_caption": False},
        "layers.0",
        (4, 4),
        CU,
        attention="layers.0.attn2",
        words=GIVEN,
        predicts="-flow",
    ),
}
