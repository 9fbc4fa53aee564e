"""Stable Diffusion and Stable Diffusion XL, with what is put around them."""

from functools import partial

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


# What the entries of a family have in common.
_of_unet = partial(
    Entry,
    layer=MID,
    attention=f"{MID}.transformer_blocks.0.attn2",
    words=CLIP_WORDS,
)

STABLE_DIFFUSION: dict[str, Entry] = {
    "stable-diffusion": _of_unet(_sd, {**PROMPT, "guidance_scale": 3.0}),
    "stable-diffusion, unguided": _of_unet(_sd, {**PROMPT, "guidance_scale": 1.0}, branches=COND),
    "stable-diffusion, rescaled guidance": _of_unet(_sd, {**PROMPT, "guidance_scale": 3.0, "guidance_rescale": 0.7}),
    "stable-diffusion, Euler": _of_unet(
        lambda: _sd(scheduler=EulerDiscreteScheduler(steps_offset=1)), {**PROMPT, "guidance_scale": 3.0}
    ),
    "stable-diffusion, image to image": _of_unet(
        lambda: _sd("StableDiffusionImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        steps=3,
    ),
    "stable-diffusion, inpainting": _of_unet(
        lambda: _sd("StableDiffusionInpaintPipeline", conditional_unet(in_channels=9)),
        {**ONE, "image": PICTURE, "mask_image": (PICTURE[:, :1] > 0.5).float(), **SIZE},
    ),
    "stable-diffusion, InstructPix2Pix": _of_unet(
        lambda: _sd("StableDiffusionInstructPix2PixPipeline", conditional_unet(in_channels=8)),
        {**ONE, "image": PICTURE, "guidance_scale": 3.0, "image_guidance_scale": 1.5},
        branches=("cond", "image", "uncond"),
    ),
    "stable-diffusion, upscaler": _of_unet(
        _upscale, {**ONE, "image": PICTURE[..., :8, :8], "guidance_scale": 3.0}, predicts="v"
    ),
    "stable-diffusion, ControlNet": _of_unet(_control, {**ONE, "image": PICTURE, "guidance_scale": 3.0}),
    "stable-diffusion, perturbed attention": _of_unet(
        lambda: _sd("StableDiffusionPAGPipeline", pag_applied_layers=["mid"]),
        {**ONE, "guidance_scale": 3.0, "pag_scale": 2.0},
        branches=("uncond", "cond", "perturbed"),
    ),
    "latent consistency": _of_unet(
        _consistency, {**PROMPT, "guidance_scale": 8.0, "original_inference_steps": 50}, branches=COND
    ),
    "stable-diffusion-xl": _of_unet(_sdxl, {**PROMPT, "guidance_scale": 3.0, **SIZE}),
    "stable-diffusion-xl, image to image": _of_unet(
        lambda: _sdxl("StableDiffusionXLImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        steps=3,
    ),
    "stable-diffusion, Heun": _of_unet(
        lambda: _sd(scheduler=diffusers.HeunDiscreteScheduler(steps_offset=1)), {**PROMPT, "guidance_scale": 3.0}
    ),
    "stable-diffusion, inpainting by blending": _of_unet(
        lambda: _sd("StableDiffusionInpaintPipeline"),
        {**ONE, "image": PICTURE, "mask_image": HOLE, "strength": 0.99, **SIZE},
        steps=3,
    ),
    "stable-diffusion, ControlNet image to image": _of_unet(
        lambda: _control("StableDiffusionControlNetImg2ImgPipeline"),
        {**ONE, "image": PICTURE, "control_image": PICTURE, "strength": 0.7, "guidance_scale": 3.0},
        steps=3,
    ),
    "stable-diffusion, IP-Adapter": _of_unet(
        _adapted, {**ONE, "guidance_scale": 3.0, "ip_adapter_image_embeds": [embeddings(2, 1, 16)]}
    ),
    "stable-diffusion, self-attention guidance": _of_unet(
        lambda: _sd("StableDiffusionSAGPipeline"),
        {**ONE, "guidance_scale": 3.0, "sag_scale": 0.7, **SIZE},
        branches=("uncond", "cond", "degraded"),
    ),
    "stable-diffusion-xl, inpainting": _of_unet(
        lambda: _sdxl("StableDiffusionXLInpaintPipeline"),
        {**ONE, "image": PICTURE, "mask_image": HOLE, "strength": 0.99, "guidance_scale": 3.0, **SIZE},
        steps=3,
    ),
    "stable-diffusion-xl, perturbed attention": _of_unet(
        lambda: _sdxl("StableDiffusionXLPAGPipeline", pag_applied_layers=["mid"]),
        {**ONE, "guidance_scale": 3.0, "pag_scale": 2.0, **SIZE},
        branches=("uncond", "cond", "perturbed"),
    ),
}
