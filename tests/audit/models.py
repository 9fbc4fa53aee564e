"""Small models for the audit's tests: of a known answer, and a network."""

import numpy as np
import torch
from diffusers import DDIMScheduler

from diffusers_xai import GaussianDenoiser, MixtureDenoiser, XAIPipeline
from diffusers_xai.audit.case import Case
from tests.tiny import convnext_unet


SHAPE = (3, 16, 16)
MASK = np.zeros((16, 16), bool)
MASK[4:7, 5:11] = True


def images(count=80):
    """Smooth images whose labels, 0 and 1, differ by a bright patch."""
    rng = np.random.default_rng(0)
    grid = np.arange(16)
    near = np.exp(-((grid[:, None] - grid) ** 2) / 8)
    values = np.einsum("nchw,hy,wx->ncyx", rng.normal(size=(count, *SHAPE)), near, near) / 6
    values[1::2, :, 8:14, 2:7] += 0.8
    return torch.from_numpy(values).float()


def mixture():
    """Of two labels."""
    scheduler = DDIMScheduler(clip_sample=False)
    return XAIPipeline(MixtureDenoiser.fit(images().double(), torch.arange(80) % 2, scheduler, rank=20), scheduler)


def gaussian():
    """Without labels: x̂_0 is linear in x_t."""
    scheduler = DDIMScheduler(clip_sample=False)
    return XAIPipeline(GaussianDenoiser.fit(images().double(), scheduler, rank=20), scheduler)


def network():
    """The thesis's network with random weights."""
    return XAIPipeline(convnext_unet(class_encoding="bits"), DDIMScheduler(clip_sample=False))


def case(pipe, timestep=300, batch=3, label=None, other_label=None):
    """Noised images, shown to a model."""
    clean = images()[:batch].to(pipe.unet.dtype)
    alpha = float(pipe.scheduler.alphas_cumprod[timestep])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
    return Case(pipe, alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, timestep, MASK, clean, label, other_label)
