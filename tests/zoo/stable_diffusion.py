"""Stable Diffusion and Stable Diffusion XL, with what is put around them."""

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from tests.zoo.entry import (
    CLIP_WORDS,
    COND,
    HOLE,
    MID,
    ONE,
    PICTURE,
    PROMPT,
    SIZE,
    Entry,
)
from tests.zoo.parts import (
    clip_encoder,
    clip_tokenizer,
    conditional_unet,
    embeddings,
    vae,
)


def _sd(cls="StableDiffusionPipeline", unet=None, scheduler=None, **more):
    return getattr(diffusers, cls)(
        vae=vae(),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        unet=unet or conditional_unet(),
        scheduler=scheduler or DDIMScheduler(clip_sample=False, steps_offset=1),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, **more},
    )


def _control(cls="StableDiffusionControlNetPipeline"):
    torch.manual_seed(0)
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), norm_num_groups=4,
        conditioning_embedding_out_channels=(4, 8),
    ).eval()  # fmt: skip
    return _sd("StableDiffusionControlNetPipeline", controlnet=controlnet)


def _consistency():
    return _sd(
        "LatentConsistencyModelPipeline",
        conditional_unet(time_cond_proj_dim=16),
        diffusers.LCMScheduler(clip_sample=False),
    )


def _upscale():
    return diffusers.StableDiffusionUpscalePipeline(
        vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        unet=conditional_unet(in_channels=7, num_class_embeds=1000), low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), max_noise_level=350,
    )  # fmt: skip


def _sdxl(cls="StableDiffusionXLPipeline", **more):
    config = {
        "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }  # fmt: skip
    return getattr(diffusers, cls)(
        vae=vae(), unet=conditional_unet(**config), scheduler=EulerDiscreteScheduler(), text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(), text_encoder_2=clip_encoder(projection=True), tokenizer_2=clip_tokenizer(), **more,
    )  # fmt: skip


def _adapted():
    """With an IP-Adapter whose images come as embeddings, in two layers."""
    pipe = _sd()
    torch.manual_seed(0)
    layers = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    projections = {}
    for i, name in enumerate(layers):
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        projections |= {f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(width, 16) for part in "kv"}
    image = {"proj.weight": torch.randn(4 * 16, 16), "proj.bias": torch.zeros(4 * 16)}
    image |= {"norm.weight": torch.ones(16), "norm.bias": torch.zeros(16)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": projections}])
    pipe.set_ip_adapter_scale(0.6)
    return pipe


STABLE_DIFFUSION: dict[str, Entry] = {
    "stable-diffusion": Entry(
        _sd, {**PROMPT, "guidance_scale": 3.0}, MID, attention=f"{MID}.transformer_blocks.0.attn2", words=CLIP_WORDS
    ),
    "stable-diffusion, unguided": Entry(
        _sd,
        {**PROMPT, "guidance_scale": 1.0},
        MID,
        branches=COND,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, rescaled guidance": Entry(
        _sd,
        {**PROMPT, "guidance_scale": 3.0, "guidance_rescale": 0.7},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, Euler": Entry(
        lambda: _sd(scheduler=EulerDiscreteScheduler(steps_offset=1)),
        {**PROMPT, "guidance_scale": 3.0},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, image to image": Entry(
        lambda: _sd("StableDiffusionImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        MID,
        steps=3,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, inpainting": Entry(
        lambda: _sd("StableDiffusionInpaintPipeline", conditional_unet(in_channels=9)),
        {**ONE, "image": PICTURE, "mask_image": (PICTURE[:, :1] > 0.5).float(), **SIZE},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, InstructPix2Pix": Entry(
        lambda: _sd("StableDiffusionInstructPix2PixPipeline", conditional_unet(in_channels=8)),
        {**ONE, "image": PICTURE, "guidance_scale": 3.0, "image_guidance_scale": 1.5},
        MID,
        branches=("cond", "image", "uncond"),
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, upscaler": Entry(
        _upscale,
        {**ONE, "image": PICTURE[..., :8, :8], "guidance_scale": 3.0},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
        predicts="v",
    ),
    "stable-diffusion, ControlNet": Entry(
        _control,
        {**ONE, "image": PICTURE, "guidance_scale": 3.0},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, perturbed attention": Entry(
        lambda: _sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]),
        {**ONE, "guidance_scale": 3.0, "pag_scale": 2.0},
        MID,
        branches=("uncond", "cond", "perturbed"),
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "latent consistency": Entry(
        _consistency,
        {**PROMPT, "guidance_scale": 8.0, "original_inference_steps": 50},
        MID,
        branches=COND,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion-xl": Entry(
        _sdxl,
        {**PROMPT, "guidance_scale": 3.0, **SIZE},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion-xl, image to image": Entry(
        lambda: _sdxl("StableDiffusionXLImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        MID,
        steps=3,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, Heun": Entry(
        lambda: _sd(scheduler=diffusers.HeunDiscreteScheduler(steps_offset=1)),
        {**PROMPT, "guidance_scale": 3.0},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, inpainting by blending": Entry(
        lambda: _sd("StableDiffusionInpaintPipeline"),
        {**ONE, "image": PICTURE, "mask_image": HOLE, "strength": 0.99, **SIZE},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
        steps=3,
    ),
    "stable-diffusion, ControlNet image to image": Entry(
        lambda: _control("StableDiffusionControlNetImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "control_image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
        steps=3,
    ),
    "stable-diffusion, IP-Adapter": Entry(
        _adapted,
        {**ONE, "guidance_scale": 3.0, "ip_adapter_image_embeds": [embeddings(2, 1, 16)]},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion, self-attention guidance": Entry(
        lambda: _sd("StableDiffusionSAGPipeline"),
        {**ONE, "guidance_scale": 3.0, "sag_scale": 0.7, **SIZE},
        MID,
        branches=("uncond", "cond", "degraded"),
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
    "stable-diffusion-xl, inpainting": Entry(
        lambda: _sdxl("StableDiffusionXLInpaintPipeline"),
        {**ONE, "image": PICTURE, "mask_image": HOLE, "strength": 0.99, "guidance_scale": 3.0, **SIZE},
        MID,
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
        steps=3,
    ),
    "stable-diffusion-xl, perturbed attention": Entry(
        lambda: _sdxl("StableDiffusionXLPAGPipeline", pag_applied_layers=["mid"]),
        {**ONE, "guidance_scale": 3.0, "pag_scale": 2.0, **SIZE},
        MID,
        branches=("uncond", "cond", "perturbed"),
        attention=f"{MID}.transformer_blocks.0.attn2",
        words=CLIP_WORDS,
    ),
}
