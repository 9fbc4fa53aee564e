"""What the tests of gradients share: a tiny pipeline, and a recorded run of it."""

import torch
from diffusers import DDPMScheduler

from diffusers_xai import (
    XAIPipeline,
)
from tests.tiny import convnext_unet


def make(unet=None, scheduler=None):
    return XAIPipeline(unet or convnext_unet(), scheduler or DDPMScheduler(clip_sample=False))


def run(pipe, specs, label=5, steps=3, **kwargs):
    generator = torch.Generator().manual_seed(0)
    labels = {} if label is None else {"class_labels": label}
    return pipe(num_inference_steps=steps, generator=generator, record=specs, output_type="np", **labels, **kwargs)
