"""Tiny pipelines of the real classes: random weights, a few channels, two images or one, three steps.

Each entry says by hand, from the class's source, what the package must find out by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from tests.zoo.parts import clip_encoder, clip_tokenizer, embeddings, t5_encoder, t5_tokenizer, vae


@dataclass(frozen=True)
class Entry:
    """A pipeline of the zoo.

    Attributes:
        make: Makes the pipeline.
        call: Arguments of its call, without steps, generator and output type.
        layer: A block or layer whose main output is compared.
        grid: Where that layer's image tokens lie, (height, width) or (frame, height, width); `None` for convolutions.
        branches: The guidance branches, in the order in which they are computed.
        position: Which tensor of the layer's output is the image's.
        attention: A layer of softmax attention; `None` if there is none.
        words: Words of the prompt, where the pipeline tokenizes one.
    """

    make: Callable[[], Any]
    call: dict[str, Any]
    layer: str
    grid: tuple[int, ...] | None = None
    branches: tuple[str, ...] = ("uncond", "cond")
    position: int = 0
    attention: str | None = None
    words: tuple[str, ...] = ()
    steps: int = 3


def _unet(cls="UNet2DConditionModel", **config):
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


def _sd(cls="StableDiffusionPipeline", unet=None, scheduler=None, **more):
    return getattr(diffusers, cls)(
        vae=vae(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet or _unet(),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, steps_offset=1),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **more},
    )


def _control():
    torch.manual_seed(0)
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
    ).eval()  # fmt: skip
    return _sd("StableDiffusionControlNetPipeline", controlnet=controlnet)


def _consistency():
    return _sd(
        "LatentConsistencyModelPipeline", _unet(time_cond_proj_dim=16), diffusers.LCMScheduler(clip_sample=False)
    )


def _unconditional(cls, scheduler):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    return getattr(diffusers, cls)(unet=unet, scheduler=scheduler)


def _sdxl(cls="StableDiffusionXLPipeline"):
    config = {
        "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }  # fmt: skip
    return getattr(diffusers, cls)(
        vae=vae(), unet=_unet(**config), scheduler=EulerDiscreteScheduler(), text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(projection=True), tokenizer_2=clip_tokenizer(),
    )  # fmt: skip


def _transformer(cls, **config):
    torch.manual_seed(0)
    return getattr(diffusers, cls)(**config).eval()


def _of(cls, transformer, scheduler=None, **more):
    return getattr(diffusers, cls)(
        transformer=transformer, scheduler=scheduler or FlowMatchEulerDiscreteScheduler(), **more
    )


def _dit():
    transformer = _transformer(
        "DiTTransformer2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, in_channels=4, out_channels=8, attention_bias=True,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer=transformer, vae=vae(), scheduler=DDIMScheduler(clip_sample=False))


def _pixart(cls="PixArtAlphaPipeline"):
    transformer = _transformer(
        "PixArtTransformer2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=32, in_channels=4, cross_attention_dim=16, out_channels=8,
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return _of(
        cls, transformer, DDIMScheduler(clip_sample=False), vae=vae(), text_encoder=t5_encoder(32),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def _sd3(dual=False, cls="StableDiffusion3Pipeline"):
    transformer = _transformer(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,) if dual else (),
    )  # fmt: skip
    return _of(
        cls, transformer, vae=vae(4, 0.1), text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(projection=True), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(32), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def _flux(cls="FluxPipeline"):
    transformer = _transformer(
        "FluxTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return _of(
        cls, transformer, vae=vae(4, 0.1), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(32), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def _chroma():
    transformer = _transformer(
        "ChromaTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return _of("ChromaPipeline", transformer, vae=vae(4, 0.1), text_encoder=t5_encoder(32), tokenizer=t5_tokenizer())


def _qwen():
    transformer = _transformer(
        "QwenImageTransformer2DModel", patch_size=2, in_channels=16, out_channels=4, num_layers=2,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return _of("QwenImagePipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _aura():
    transformer = _transformer(
        "AuraFlowTransformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
        joint_attention_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    return _of("AuraFlowPipeline", transformer, vae=vae(), text_encoder=t5_encoder(32), tokenizer=t5_tokenizer())


def _sana():
    transformer = _transformer(
        "SanaTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=16, sample_size=8,
    )  # fmt: skip
    return _of("SanaPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _lumina2():
    transformer = _transformer(
        "Lumina2Transformer2DModel", sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return _of("Lumina2Pipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _z_image():
    transformer = _transformer(
        "ZImageTransformer2DModel", in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return _of("ZImagePipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _cogview4():
    transformer = _transformer(
        "CogView4Transformer2DModel", patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=4, text_embed_dim=32, time_embed_dim=8, condition_dim=4, sample_size=8,
        rope_axes_dim=(8, 8), pos_embed_max_size=8,
    )  # fmt: skip
    return _of("CogView4Pipeline", transformer, vae=vae(), text_encoder=None, tokenizer=None)


def _cogvideox():
    transformer = _transformer(
        "CogVideoXTransformer3DModel", num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=32, num_layers=2, sample_width=8, sample_height=8, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    return _of(
        "CogVideoXPipeline", transformer, DDIMScheduler(clip_sample=False), vae=None, text_encoder=None, tokenizer=None
    )


def _wan(two=False):
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 16, "num_layers": 2,
        "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip
    second = {"transformer_2": _transformer("WanTransformer3DModel", **config), "boundary_ratio": 0.5} if two else {}
    return _of(
        "WanPipeline", _transformer("WanTransformer3DModel", **config), vae=None, text_encoder=None, tokenizer=None,
        **second,
    )  # fmt: skip


def _ltx():
    transformer = _transformer(
        "LTXVideoTransformer3DModel", in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    return _of("LTXPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _hunyuan_video():
    transformer = _transformer(
        "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
        num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return _of(
        "HunyuanVideoPipeline", transformer, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None,
    )  # fmt: skip


def _mochi():
    transformer = _transformer(
        "MochiTransformer3DModel", patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4,
        max_sequence_length=16,
    )  # fmt: skip
    return _of("MochiPipeline", transformer, vae=None, text_encoder=None, tokenizer=None)


def _hunyuan_dit():
    transformer = _transformer(
        "HunyuanDiT2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, hidden_size=16,
        activation_fn="gelu-approximate", text_len=12, text_len_t5=16, use_style_cond_and_image_meta_size=False,
        learn_sigma=True,
    )  # fmt: skip
    return _of(
        "HunyuanDiTPipeline", transformer, DDIMScheduler(clip_sample=False), vae=vae(), text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _kandinsky22():
    unet = _unet(
        in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    movq = diffusers.VQModel(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, num_vq_embeddings=8, vq_embed_dim=4,
    ).eval()  # fmt: skip
    return diffusers.KandinskyV22Pipeline(unet=unet, scheduler=DDPMScheduler(variance_type="learned_range"), movq=movq)


def _if():
    unet = _unet(
        in_channels=3, out_channels=6, encoder_hid_dim=16, addition_embed_type="text", addition_embed_type_num_heads=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    return diffusers.IFPipeline(
        tokenizer=None, text_encoder=None, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def _cascade_prior():
    prior = _transformer(
        "StableCascadeUNet", conditioning_dim=16, block_out_channels=(8, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_image_in_channels=16,
        clip_text_in_channels=16, clip_text_pooled_in_channels=16, in_channels=4, out_channels=4,
        switch_level=(False,),
    )  # fmt: skip
    return diffusers.StableCascadePriorPipeline(
        tokenizer=None, text_encoder=clip_encoder(), prior=prior, scheduler=diffusers.DDPMWuerstchenScheduler(),
        resolution_multiple=1.0,
    )  # fmt: skip


def _stable_audio_like():
    """An unconditional one-dimensional network in Dance Diffusion's pipeline."""
    unet = diffusers.UNet1DModel(
        block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=64, sample_rate=16, in_channels=2,
        out_channels=2,
        flip_sin_to_cos=True, use_timestep_embedding=False, time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D", down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    ).eval()  # fmt: skip
    return diffusers.DanceDiffusionPipeline(unet=unet, scheduler=diffusers.IPNDMScheduler())


def _animatediff():
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    return diffusers.AnimateDiffPipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(), unet=_unet(), motion_adapter=adapter,
        scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear", steps_offset=1),
    )  # fmt: skip


def _upscale():
    return diffusers.StableDiffusionUpscalePipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        unet=_unet(in_channels=7, num_class_embeds=1000), low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), max_noise_level=350,
    )  # fmt: skip


_PROMPT = {"prompt": ["a red fox", "a cat"]}
_ONE = {"prompt": "a red fox"}
_PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
_T16 = {"max_sequence_length": 16}
_MID = "mid_block.attentions.0"
_EMBEDS = {"prompt_embeds": embeddings(1, 16, 32), "negative_prompt_embeds": embeddings(1, 16, 32, seed=2)}
_EMBEDS16 = {"prompt_embeds": embeddings(1, 16, 16), "negative_prompt_embeds": embeddings(1, 16, 16, seed=2)}
_ONES = torch.ones(1, 16, dtype=torch.long)
_MASKS = {"prompt_attention_mask": _ONES, "negative_prompt_attention_mask": _ONES}
_SIZE = {"height": 16, "width": 16}
_COND = ("cond",)
_CU = ("cond", "uncond")

ZOO: dict[str, Entry] = {
    "stable-diffusion": Entry(
        _sd, {**_PROMPT, "guidance_scale": 3.0}, _MID, attention=f"{_MID}.transformer_blocks.0.attn2", words=("a",)
    ),
    "stable-diffusion, unguided": Entry(
        _sd, {**_PROMPT, "guidance_scale": 1.0}, _MID, branches=_COND, attention=f"{_MID}.transformer_blocks.0.attn2"
    ),
    "stable-diffusion, Euler": Entry(
        lambda: _sd(scheduler=EulerDiscreteScheduler(steps_offset=1)), {**_PROMPT, "guidance_scale": 3.0}, _MID
    ),
    "stable-diffusion, image to image": Entry(
        lambda: _sd("StableDiffusionImg2ImgPipeline"),
        {**_ONE, "image": _PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        _MID,
        steps=5,
    ),
    "stable-diffusion, inpainting": Entry(
        lambda: _sd("StableDiffusionInpaintPipeline", _unet(in_channels=9)),
        {**_ONE, "image": _PICTURE, "mask_image": (_PICTURE[:, :1] > 0.5).float(), **_SIZE},
        _MID,
    ),
    "stable-diffusion, InstructPix2Pix": Entry(
        lambda: _sd("StableDiffusionInstructPix2PixPipeline", _unet(in_channels=8)),
        {**_ONE, "image": _PICTURE, "guidance_scale": 3.0, "image_guidance_scale": 1.5},
        _MID,
        branches=("cond", "image", "uncond"),
    ),
    "stable-diffusion, upscaler": Entry(
        _upscale, {**_ONE, "image": _PICTURE[..., :8, :8], "guidance_scale": 3.0}, _MID
    ),
    "stable-diffusion, ControlNet": Entry(
        _control,
        {**_ONE, "image": _PICTURE, "guidance_scale": 3.0},
        _MID,
        attention=f"{_MID}.transformer_blocks.0.attn2",
        words=("a",),
    ),
    "stable-diffusion, perturbed attention": Entry(
        lambda: _sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]),
        {**_ONE, "guidance_scale": 3.0, "pag_scale": 2.0},
        _MID,
        branches=("uncond", "cond", "perturbed"),
    ),
    "latent consistency": Entry(
        _consistency,
        {**_PROMPT, "guidance_scale": 8.0, "original_inference_steps": 50},
        _MID,
        branches=_COND,
        attention=f"{_MID}.transformer_blocks.0.attn2",
    ),
    "ddpm": Entry(
        lambda: _unconditional("DDPMPipeline", DDPMScheduler()),
        {"batch_size": 2},
        "mid_block",
        branches=_COND,
        attention="mid_block.attentions.0",
    ),
    "ddim": Entry(
        lambda: _unconditional("DDIMPipeline", DDIMScheduler()),
        {"batch_size": 2},
        "mid_block",
        branches=_COND,
        attention="mid_block.attentions.0",
    ),
    "stable-diffusion-xl": Entry(
        _sdxl,
        {**_PROMPT, "guidance_scale": 3.0, **_SIZE},
        _MID,
        attention=f"{_MID}.transformer_blocks.0.attn2",
        words=("a",),
    ),
    "stable-diffusion-xl, image to image": Entry(
        lambda: _sdxl("StableDiffusionXLImg2ImgPipeline"),
        {**_ONE, "image": _PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        _MID,
        steps=5,
    ),
    "dit": Entry(
        _dit,
        {"class_labels": [1, 2], "guidance_scale": 3.0},
        "transformer_blocks.0",
        (4, 4),
        _CU,
        attention="transformer_blocks.0.attn1",
    ),
    "dit, unguided": Entry(
        _dit,
        {"class_labels": [1, 2], "guidance_scale": 1.0},
        "transformer_blocks.0",
        (4, 4),
        _COND,
        attention="transformer_blocks.0.attn1",
    ),
    "pixart-alpha": Entry(
        _pixart,
        {**_ONE, **_SIZE, **_T16, "use_resolution_binning": False, "clean_caption": False},
        "transformer_blocks.0",
        (4, 4),
        attention="transformer_blocks.0.attn2",
        words=("fox",),
    ),
    "pixart-sigma": Entry(
        lambda: _pixart("PixArtSigmaPipeline"),
        {**_ONE, **_SIZE, **_T16, "use_resolution_binning": False, "clean_caption": False},
        "transformer_blocks.0",
        (4, 4),
        attention="transformer_blocks.0.attn2",
        words=("fox",),
    ),
    "hunyuan-dit": Entry(
        _hunyuan_dit,
        {
            **_SIZE,
            "prompt_embeds": embeddings(1, 12, 32),
            "prompt_embeds_2": embeddings(1, 16, 32),
            "negative_prompt_embeds": embeddings(1, 12, 32, seed=2),
            "negative_prompt_embeds_2": embeddings(1, 16, 32, seed=2),
            "prompt_attention_mask": _ONES[:, :12],
            "prompt_attention_mask_2": _ONES,
            "negative_prompt_attention_mask": _ONES[:, :12],
            "negative_prompt_attention_mask_2": _ONES,
            "use_resolution_binning": False,
        },
        "blocks.0",
        (4, 4),
        attention="blocks.0.attn2",
    ),
    "sd3": Entry(
        _sd3,
        {**_ONE, **_SIZE, **_T16},
        "transformer_blocks.0",
        (4, 4),
        position=1,
        attention="transformer_blocks.0.attn",
        words=("red", "fox"),
    ),
    "sd3.5": Entry(
        lambda: _sd3(dual=True),
        {**_ONE, **_SIZE, **_T16},
        "transformer_blocks.0",
        (4, 4),
        position=1,
        attention="transformer_blocks.0.attn2",
    ),
    "sd3, image to image": Entry(
        lambda: _sd3(cls="StableDiffusion3Img2ImgPipeline"),
        {**_ONE, "image": _PICTURE, "strength": 0.7, **_SIZE, **_T16},
        "transformer_blocks.0",
        (4, 4),
        position=1,
        words=("red", "fox"),
        steps=5,
    ),
    "flux": Entry(
        _flux,
        {**_ONE, "height": 16, "width": 32, **_T16},
        "transformer_blocks.0",
        (4, 8),
        _COND,
        1,
        "single_transformer_blocks.0.attn",
        ("fox",),
    ),
    "flux, image to image": Entry(
        lambda: _flux("FluxImg2ImgPipeline"),
        {**_ONE, "image": _PICTURE, "strength": 0.7, **_SIZE, **_T16},
        "transformer_blocks.0",
        (4, 4),
        _COND,
        1,
        "transformer_blocks.0.attn",
        ("fox",),
        steps=5,
    ),
    "flux, true guidance": Entry(
        _flux,
        {**_ONE, "negative_prompt": "b", "true_cfg_scale": 2.0, "height": 16, "width": 32, **_T16},
        "transformer_blocks.0",
        (4, 8),
        _CU,
        1,
        "transformer_blocks.0.attn",
        ("fox",),
    ),
    "chroma": Entry(
        _chroma,
        {**_ONE, "negative_prompt": "b", **_SIZE, **_T16, "guidance_scale": 3.0},
        "transformer_blocks.0",
        (4, 4),
        _CU,
        1,
        "transformer_blocks.0.attn",
        ("fox",),
    ),
    "qwen-image": Entry(
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
        "transformer_blocks.0",
        (4, 4),
        _CU,
        1,
        "transformer_blocks.0.attn",
    ),
    "auraflow": Entry(
        _aura,
        {**_ONE, **_SIZE, **_T16},
        "joint_transformer_blocks.0",
        (4, 4),
        position=1,
        attention="joint_transformer_blocks.0.attn",
        words=("fox",),
    ),
    "sana": Entry(
        _sana,
        {**_EMBEDS16, **_MASKS, "height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None},
        "transformer_blocks.0",
        (8, 8),
        attention="transformer_blocks.0.attn2",
    ),
    "lumina2": Entry(
        _lumina2,
        {**_EMBEDS, **_MASKS, "height": 64, "width": 64, "cfg_normalization": False},
        "layers.0",
        (4, 4),
        _CU,
        attention="layers.0.attn",
    ),
    "z-image": Entry(
        _z_image,
        {
            "prompt_embeds": [embeddings(7, 16)],
            "negative_prompt_embeds": [embeddings(7, 16, seed=2)],
            "height": 64,
            "width": 64,
        },
        "layers.0",
        (4, 4),
        _CU,
        attention="layers.0.attention",
    ),
    "cogview4": Entry(
        _cogview4,
        {**_EMBEDS, **_SIZE, "original_size": (16, 16)},
        "transformer_blocks.0",
        (4, 4),
        _CU,
        attention="transformer_blocks.0.attn1",
    ),
    "kandinsky-2.2": Entry(
        _kandinsky22,
        {
            "image_embeds": embeddings(1, 16),
            "negative_image_embeds": embeddings(1, 16, seed=2),
            "height": 64,
            "width": 64,
        },
        "mid_block",
        attention="mid_block.attentions.0",
    ),
    "deepfloyd-if": Entry(
        _if, {**_EMBEDS16, "height": 8, "width": 8}, "mid_block", attention="mid_block.attentions.0"
    ),
    "stable-cascade, prior": Entry(
        _cascade_prior,
        {
            "prompt_embeds": embeddings(1, 5, 16),
            "prompt_embeds_pooled": embeddings(1, 1, 16),
            "negative_prompt_embeds": embeddings(1, 5, 16, seed=2),
            "negative_prompt_embeds_pooled": embeddings(1, 1, 16, seed=2),
            "height": 8,
            "width": 8,
            "guidance_scale": 3.0,
        },
        "down_blocks.0.0",
        branches=_CU,
        attention="down_blocks.0.2.attention",
    ),
    "animatediff": Entry(
        _animatediff, {**_ONE, "num_frames": 4, **_SIZE, "guidance_scale": 3.0}, "mid_block", (4, 2, 2)
    ),
    "cogvideox": Entry(
        _cogvideox,
        {**_EMBEDS, "height": 64, "width": 64, "num_frames": 9},
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn1",
    ),
    "wan": Entry(
        _wan,
        {**_EMBEDS16, "height": 64, "width": 64, "num_frames": 9},
        "blocks.0",
        (3, 4, 4),
        _CU,
        attention="blocks.0.attn2",
    ),
    "wan-2.2": Entry(
        lambda: _wan(True),
        {**_EMBEDS16, "height": 64, "width": 64, "num_frames": 9},
        "transformer_2.blocks.0",
        (3, 4, 4),
        _CU,
        steps=4,
    ),
    "ltx-video": Entry(
        _ltx,
        {**_EMBEDS, **_MASKS, "height": 128, "width": 128, "num_frames": 17},
        "transformer_blocks.0",
        (3, 4, 4),
        attention="transformer_blocks.0.attn2",
    ),
    "hunyuan-video": Entry(
        _hunyuan_video,
        {
            "prompt_embeds": embeddings(1, 16, 16),
            "pooled_prompt_embeds": embeddings(1, 8),
            "prompt_attention_mask": _ONES,
            "height": 32,
            "width": 32,
            "num_frames": 9,
        },
        "transformer_blocks.0",
        (3, 4, 4),
        _COND,
        attention="transformer_blocks.0.attn",
    ),
    "mochi": Entry(
        _mochi,
        {
            **_EMBEDS,
            "prompt_attention_mask": _ONES.bool(),
            "negative_prompt_attention_mask": _ONES.bool(),
            "height": 32,
            "width": 32,
            "num_frames": 7,
        },
        "transformer_blocks.0",
        (2, 2, 2),
        attention="transformer_blocks.0.attn1",
    ),
    "dance-diffusion": Entry(_stable_audio_like, {"audio_length_in_s": 4}, "mid_block", branches=_COND),
}
