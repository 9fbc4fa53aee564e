"""Pipelines that make videos."""

from dataclasses import replace

import diffusers
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from transformers import CLIPImageProcessor

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
    conditional_unet,
    embeddings,
    network,
    t5_encoder,
    t5_tokenizer,
    vae,
    vision_encoder,
)


def _animatediff():
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=conditional_unet(),
        motion_adapter=adapter, scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear", steps_offset=1),
    )  # fmt: skip


def _cogvideox():
    transformer = network(
        "CogVideoXTransformer3DModel", num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=32, num_layers=2, sample_width=8, sample_height=8, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    return around(
        "CogVideoXPipeline", transformer, DDIMScheduler(clip_sample=False), vae=None, text_encoder=None, tokenizer=None
    )


def _wan(two=False):
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 16, "num_layers": 2,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    second = {"transformer_2": network("WanTransformer3DModel", seed=1, **config), "boundary_ratio": 0.5}
    return around(
        "WanPipeline", network("WanTransformer3DModel", **config), vae=None, text_encoder=t5_encoder(16),
        tokenizer=t5_tokenizer(), **(second if two else {}),
    )  # fmt: skip


def _ltx():
    transformer = network(
        "LTXVideoTransformer3DModel", in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    return around("LTXPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _hunyuan_video():
    transformer = network(
        "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
        num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return around(
        "HunyuanVideoPipeline", transformer, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None,
    )  # fmt: skip


def _mochi():
    transformer = network(
        "MochiTransformer3DModel", patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4,
        max_sequence_length=16,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)  # as it is published
    return around("MochiPipeline", transformer, scheduler, vae=None, text_encoder=None, tokenizer=None)


def _wan_from_image():
    torch.manual_seed(0)
    transformer = network(
        "WanTransformer3DModel", patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    codec = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    return around("WanImageToVideoPipeline", transformer, vae=codec, text_encoder=None, tokenizer=None)


def _latte():
    transformer = network(
        "LatteTransformer3DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=32, in_channels=4, cross_attention_dim=16, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, video_length=3,
    )  # fmt: skip
    return around(
        "LattePipeline", transformer, DDIMScheduler(clip_sample=False), vae=None, text_encoder=None, tokenizer=None
    )


def _allegro():
    transformer = network(
        "AllegroTransformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        num_layers=2, cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=3, caption_channels=32,
    )  # fmt: skip
    return around(
        "AllegroPipeline", transformer, DDIMScheduler(clip_sample=False), vae=None, text_encoder=None, tokenizer=None
    )


def _text_to_video():
    torch.manual_seed(0)
    unet = diffusers.UNet3DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        norm_num_groups=2,
    ).eval()  # fmt: skip
    return diffusers.TextToVideoSDPipeline(
        unet=unet, vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False),
    )  # fmt: skip


def _stable_video():
    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), num_attention_heads=(2, 2),
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, num_frames=3,
    ).eval()  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002,
        sigma_max=700.0, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet,
        vae=vae(),
        image_encoder=vision_encoder(),
        scheduler=scheduler,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
    )


def _skyreels():
    transformer = network(
        "SkyReelsV2Transformer3DModel", num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=16, freq_dim=16, ffn_dim=16, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return around("SkyReelsV2Pipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _kandinsky_5():
    transformer = network(
        "Kandinsky5Transformer3DModel", in_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, out_visual_dim=4,
        model_dim=24, ff_dim=16, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 4),
    )  # fmt: skip
    return around(
        "Kandinsky5T2VPipeline", transformer, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None,
    )  # fmt: skip


# Layers of frames, not those over time.
FRAMES = tuple(f"attentions.{i}.transformer_blocks.0.attn2" for i in range(2))

_WAN = Entry(
    _wan,
    {**EMBEDS16, "height": 64, "width": 64, "num_frames": 9},
    "blocks.0",
    (3, 4, 4),
    CU,
    attention="blocks.0.attn2",
    words=GIVEN,
    predicts="flow",
)

VIDEO: dict[str, Entry] = {
    "animatediff": Entry(
        _animatediff,
        {**ONE, "num_frames": 3, **SIZE, "guidance_scale": 3.0},
        "mid_block",
        (3, 2, 2),
        attention="mid_block.attentions.0.transformer_blocks.0.attn2",
        crosses=FRAMES,
        words=CLIP_WORDS,
    ),
    "cogvideox": Entry(
        _cogvideox,
        {**EMBEDS, "height": 64, "width": 64, "num_frames": 9},
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn1",
        queries=(16, None),
        keys=(0, 16),
        crosses=("attn1",),
        frames_first=True,
        words=GIVEN,
    ),
    "wan": _WAN,
    "wan-2.2": Entry(
        lambda: _wan(True),
        {**ONE, "negative_prompt": "b", **T16, "height": 64, "width": 64, "num_frames": 9},
        "transformer_2.blocks.0",
        (3, 4, 4),
        CU,
        attention="transformer_2.blocks.0.attn2",
        words=T5_WORDS,
        predicts="flow",
    ),
    "ltx-video": Entry(
        _ltx,
        {**EMBEDS, **MASKS, "height": 128, "width": 128, "num_frames": 17},
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn2",
        words=GIVEN,
        predicts="flow",
    ),
    "hunyuan-video": Entry(
        _hunyuan_video,
        {
            "prompt_embeds": embeddings(1, 16, 16),
            "pooled_prompt_embeds": embeddings(1, 8),
            "prompt_attention_mask": ONES,
            "height": 32,
            "width": 32,
            "num_frames": 9,
        },
        "transformer_blocks.0",
        (3, 4, 4),
        COND,
        attention="transformer_blocks.0.attn",
        queries=(0, 48),
        keys=(48, None),
        crosses=("transformer_blocks.0.attn", "single_transformer_blocks.0.attn"),
        text_only=("context_embedder",),
        words=GIVEN,
        predicts="flow",
    ),
    "mochi": Entry(
        _mochi,
        {
            **EMBEDS,
            "prompt_attention_mask": ONES.bool(),
            "negative_prompt_attention_mask": ONES.bool(),
            "height": 32,
            "width": 32,
            "num_frames": 7,
        },
        "transformer_blocks.0",
        (2, 2, 2),
        attention="transformer_blocks.0.attn1",
        queries=(0, 8),
        keys=(8, None),
        crosses=("attn1",),
        text_only=("time_embed",),
        words=GIVEN,
        predicts="inverted",
    ),
    "wan, image to video": Entry(
        _wan_from_image,
        {**EMBEDS16, "image": PICTURE, "height": 64, "width": 64, "num_frames": 5},
        "blocks.0",
        (2, 4, 4),
        CU,
        attention="blocks.0.attn2",
        words=GIVEN,
        predicts="flow",
    ),
    "skyreels-v2": replace(_WAN, make=_skyreels),
    "kandinsky-5": Entry(
        _kandinsky_5,
        {
            "prompt_embeds_qwen": embeddings(1, 7, 16),
            "prompt_embeds_clip": embeddings(1, 8),
            "prompt_cu_seqlens": torch.tensor([0, 7]),
            "negative_prompt_embeds_qwen": embeddings(1, 7, 16, seed=2),
            "negative_prompt_embeds_clip": embeddings(1, 8, seed=2),
            "negative_prompt_cu_seqlens": torch.tensor([0, 7]),
            "height": 64,
            "width": 64,
            "num_frames": 9,
        },
        "visual_transformer_blocks.0",
        (3, 4, 4),
        CU,
        attention="visual_transformer_blocks.0.cross_attention",
        crosses=("cross_attention",),
        channels_last=True,
        text_only=("text_transformer_blocks",),
        words=GIVEN,
        predicts="flow",
    ),
    "latte": Entry(
        _latte,
        {**EMBEDS, "height": 64, "width": 64, "video_length": 3, "negative_prompt": None, "clean_caption": False},
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn2",
        words=GIVEN,
    ),
    "allegro": Entry(
        _allegro,
        {
            **EMBEDS,
            **MASKS,
            "height": 64,
            "width": 64,
            "num_frames": 12,
            "negative_prompt": None,
            "clean_caption": False,
        },
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn2",
        words=GIVEN,
    ),
    "text-to-video": Entry(
        _text_to_video,
        {**ONE, "num_frames": 3, **SIZE, "guidance_scale": 3.0},
        "mid_block",
        (3, 4, 4),
        attention="mid_block.attentions.0.transformer_blocks.0.attn2",
        frames_in_rows=True,
        crosses=FRAMES,
        words=CLIP_WORDS,
    ),
    "stable-video": Entry(
        _stable_video,
        {"image": PICTURE, **SIZE, "num_frames": 3},
        "mid_block",
        (3, 4, 4),
        attention="mid_block.attentions.0.transformer_blocks.0.attn2",
        predicts="v",
        noisy=(2, 0),
        frames_first=True,
    ),
}
