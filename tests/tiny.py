"""Tiny pipelines of the real classes: random weights, a few channels, 16 px."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline


SCHEDULERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "heun": HeunDiscreteScheduler,
}


def convnext_unet(**config):
    torch.manual_seed(0)
    defaults = {"sample_size": 16, "block_out_channels": (8, 16), "num_attention_heads": 2, "attention_head_dim": 4}
    return ConvNextUNet2DModel(**{**defaults, **config}).eval()


def unet_2d(attention=True, **config):
    torch.manual_seed(0)
    with_attention = "Attn" if attention else ""
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", f"{with_attention}DownBlock2D"),
        up_block_types=(f"{with_attention}UpBlock2D", "UpBlock2D"),
        add_attention=attention,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    ).eval()


def stable_diffusion():
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=16,
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    pieces = ["<|startoftext|>", "<|endoftext|>"]
    pieces += [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=12)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pieces),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


# Name -> maker of a tiny pipeline, and the arguments of a call without steps and generator.
PIPELINES = {
    "xai": (lambda: XAIPipeline(convnext_unet(), DDPMScheduler()), {"class_labels": [3, 12]}),
    "ddpm": (lambda: DDPMPipeline(unet_2d(), DDPMScheduler()), {"batch_size": 2}),
    "ddim": (lambda: DDIMPipeline(unet_2d(), DDIMScheduler()), {"batch_size": 2}),
    "stable_diffusion": (stable_diffusion, {"prompt": ["a red fox", "a cat"], "guidance_scale": 3.0}),
}


def make_pipeline(name, scheduler=None):
    """A tiny pipeline, quiet, optionally with another scheduler, and a function that samples from it."""
    make, kwargs = PIPELINES[name]
    pipe = make()
    if scheduler is not None:
        pipe.scheduler = scheduler

    def sample(seed=0, num_inference_steps=4, **more):
        generator = torch.Generator().manual_seed(seed)
        arguments = {**kwargs, "num_inference_steps": num_inference_steps, "generator": generator, **more}
        return pipe(output_type="np", **arguments)

    return pipe, sample


def state_of(pipe):
    """Everything that a tap could have left behind."""
    hooks = {
        path: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), sorted(vars(m)))
        for path, m in pipe.unet.named_modules()
    }
    processors = {path: id(p) for path, p in getattr(pipe.unet, "attn_processors", {}).items()}
    gradients = [(p.requires_grad, p.grad is None) for p in pipe.unet.parameters()]
    return hooks, processors, "step" in vars(pipe.scheduler), torch.is_grad_enabled(), gradients
