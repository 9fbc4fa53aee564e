"""Small data and the denoisers of known answer that are fitted to them."""

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffusers_xai import EmpiricalDenoiser, GaussianDenoiser, MixtureDenoiser


SHAPE, DIM = (3, 4, 3), 36
SCHEDULER = DDPMScheduler(clip_sample=False)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
ALPHAS = SCHEDULER.alphas_cumprod.double().numpy()
TIMES = [950, 600, 100, 0]


def correlated_images(count, seed=0, shape=SHAPE):
    """Images whose pixels are correlated, around a mean that is not zero, float64."""
    rng = np.random.default_rng(seed)
    dim = int(np.prod(shape))
    mixing = rng.normal(size=(dim, dim)) * 0.9 ** np.arange(dim) / 2
    return torch.from_numpy((rng.normal(size=(count, dim)) @ mixing + rng.normal(size=dim) / 2).reshape(-1, *shape))


def noisy(seed=0, batch=2, shape=SHAPE):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(tensor):
    return tensor.flatten(1).numpy()


def moments(images):
    vectors = numbers(images)
    return vectors.mean(0), np.cov(vectors.T, bias=True)


IMAGES = correlated_images(60)
LABELS = torch.arange(60) % 3
LABELS[:7] = 0  # shares that differ
DENOISERS = {
    "gaussian": GaussianDenoiser.fit(IMAGES, SCHEDULER),
    "gaussian of few components": GaussianDenoiser.fit(IMAGES, SCHEDULER, rank=5),
    "gaussian of few images": GaussianDenoiser.fit(IMAGES[:9], SCHEDULER),
    "gaussian by spectrum": GaussianDenoiser.fit(IMAGES, SCHEDULER, covariance_type="spectrum"),
    "gaussian, shrunk": GaussianDenoiser.fit(IMAGES[:9], SCHEDULER, covariance_type="shrunk"),
    "mixture": MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER),
    "mixture of own covariances": MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER, shared_covariance=False, rank=6),
    "images": EmpiricalDenoiser.fit(IMAGES, SCHEDULER),
    "labelled images": EmpiricalDenoiser.fit(IMAGES, SCHEDULER, LABELS),
}
FLOWS = {
    "gaussian of a flow": GaussianDenoiser.fit(IMAGES, FLOW),
    "labelled images of a flow": EmpiricalDenoiser.fit(IMAGES, FLOW, LABELS),
}
