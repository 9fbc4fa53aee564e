"""Other convolutional networks: of pixels, of latents, of sound."""

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from tests.zoo.entry import (
    COND,
    CU,
    EMBEDS16,
    GIVEN,
    MID,
    PICTURE,
    Entry,
)
from tests.zoo.parts import (
    clip_encoder,
    clip_tokenizer,
    conditional_unet,
    embeddings,
    network,
    vae,
)


def _unconditional(cls, scheduler):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1, attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip
    return getattr(diffusers, cls)(unet=unet, scheduler=scheduler)


def _kandinsky22():
    unet = conditional_unet(
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
    unet = conditional_unet(
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
    prior = network(
        "StableCascadeUNet", conditioning_dim=16, block_out_channels=(8, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_image_in_channels=16,
        clip_text_in_channels=16, clip_text_pooled_in_channels=16, in_channels=4, out_channels=4,
        switch_level=(False,),
    )  # fmt: skip
    return diffusers.StableCascadePriorPipeline(
        tokenizer=None, text_encoder=clip_encoder(), prior=prior, scheduler=diffusers.DDPMWuerstchenScheduler(),
        resolution_multiple=1.0,
    )  # fmt: skip


def _xai():
    torch.manual_seed(0)
    unet = ConvNextUNet2DModel(
        sample_size=8, block_out_channels=(8, 16), num_attention_heads=2, attention_head_dim=4, num_class_embeds=16
    ).eval()
    return XAIPipeline(unet, DDPMScheduler())


def _marigold():
    return diffusers.MarigoldDepthPipeline(
        unet=conditional_unet(in_channels=8), vae=vae(), text_encoder=clip_encoder(), tokenizer=clip_tokenizer(),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type="v_prediction"), prediction_type="depth",
        default_processing_resolution=0,
    )  # fmt: skip


def _kandinsky3():
    torch.manual_seed(0)
    unet = diffusers.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=2,
        block_out_channels=(8, 16), cross_attention_dim=16, encoder_hid_dim=16,
    ).eval()  # fmt: skip
    scheduler = DDPMScheduler(clip_sample=False)
    return diffusers.Kandinsky3Pipeline(unet=unet, scheduler=scheduler, movq=None, text_encoder=None, tokenizer=None)


def _cascade_decoder():
    decoder = network(
        "StableCascadeUNet", in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(8, 16),
        num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=16, effnet_in_channels=4, pixel_mapper_in_channels=3, patch_size=1,
        timestep_conditioning_type=("sca",), dropout=(0.1, 0.1),
    )  # fmt: skip
    return diffusers.StableCascadeDecoderPipeline(
        decoder=decoder, tokenizer=None, text_encoder=clip_encoder(), vqgan=None,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )  # fmt: skip


UNETS: dict[str, Entry] = {
    "ddpm": Entry(
        lambda: _unconditional("DDPMPipeline", DDPMScheduler()),
        {"batch_size": 2},
        "mid_block",
        branches=COND,
        attention="mid_block.attentions.0",
    ),
    "ddim": Entry(
        lambda: _unconditional("DDIMPipeline", DDIMScheduler()),
        {"batch_size": 2},
        "mid_block",
        branches=COND,
        attention="mid_block.attentions.0",
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
        keys=(0, 32),
    ),
    "deepfloyd-if": Entry(
        _if,
        {**EMBEDS16, "height": 8, "width": 8},
        "mid_block",
        attention="mid_block.attentions.0",
        keys=(0, 16),
        crosses=("attentions.0", "attentions.1"),
        words=GIVEN,
        output="np",
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
        branches=CU,
        attention="down_blocks.0.2.attention",
        keys=(64, None),
        crosses=("attention",),
        words=GIVEN,
    ),
    "xai": Entry(_xai, {"class_labels": [3, 12]}, "mid_block", branches=COND, output="np"),
    "xai, guided": Entry(_xai, {"class_labels": [3, 12], "guidance_scale": 2.0}, "mid_block", output="np"),
    "consistency model": Entry(
        lambda: _unconditional("ConsistencyModelPipeline", diffusers.CMStochasticIterativeScheduler()),
        {"batch_size": 2},
        "mid_block",
        branches=COND,
        attention="mid_block.attentions.0",
        predicts="consistency",
        output="np",
    ),
    "marigold": Entry(
        _marigold,
        {"image": PICTURE},
        MID,
        branches=COND,
        attention=f"{MID}.transformer_blocks.0.attn2",
        predicts="v",
        noisy=(1, 4),
        output="np",
    ),
    "kandinsky-3": Entry(
        _kandinsky3,
        {
            "prompt_embeds": embeddings(1, 7, 16),
            "negative_prompt_embeds": embeddings(1, 7, 16, seed=2),
            "attention_mask": torch.ones(1, 7, dtype=torch.bool),
            "negative_attention_mask": torch.ones(1, 7, dtype=torch.bool),
            "height": 64,
            "width": 64,
        },
        "down_blocks.1",
        attention="down_blocks.1.attentions.1.attention",
        crosses=("attentions.1.attention", "attentions.2.attention"),
        text_only=("add_time_condition",),
        words=GIVEN,
    ),
    "stable-cascade, decoder": Entry(
        _cascade_decoder,
        {
            "image_embeddings": embeddings(1, 4, 1, 1),
            "prompt_embeds": embeddings(1, 5, 16),
            "prompt_embeds_pooled": embeddings(1, 1, 16),
            "negative_prompt_embeds": embeddings(1, 5, 16, seed=2),
            "negative_prompt_embeds_pooled": embeddings(1, 1, 16, seed=2),
            "guidance_scale": 3.0,
        },
        "down_blocks.0.0",
        branches=CU,
        attention="down_blocks.0.2.attention",
        keys=(-4, None),
        crosses=("attention",),
        words=GIVEN,
    ),
}
