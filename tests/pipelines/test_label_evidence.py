"""What a run says about its label, against the exact P(y | x_t) of closed forms."""

import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.special import log_softmax

from diffusers_xai import XAIPipeline
from diffusers_xai.analysis import falling_crossing
from diffusers_xai.experiments.critical_window import WHOLE, WINDOW, doubt
from diffusers_xai.pipelines.label_evidence import ancestral, label_evidence
from tests.evidence import evidence_of_states, mixture_pipeline


MEANS = torch.tensor([[0.5, -0.5, 0.2, 0.1], [-0.3, 0.4, 0.2, -0.6], [0.1, 0.6, -0.5, 0.3]]).double()


def test_of_labels_that_are_single_images_it_is_exact_at_any_number_of_steps():
    pipe = mixture_pipeline(MEANS, torch.zeros(4, 4).double())
    for steps in (7, 40):
        told, states, timesteps = evidence_of_states(pipe, [0, 1, 2], [0, 2, 1, 0], range(4), steps)
        alphas = pipe.scheduler.alphas_cumprod.double().numpy()[timesteps]
        away = states[:, :, None] - np.sqrt(alphas)[:, None, None, None] * MEANS.numpy()
        exact = -(away**2).sum(-1) / (2 * (1 - alphas))[:, None, None]
        # The sampler begins in the same noise for every label, where the data are told apart a little.
        expected = log_softmax(exact - exact[:1], axis=-1)
        np.testing.assert_allclose(told, expected, rtol=1e-6, atol=1e-6)
    assert np.exp(told[-1])[range(4), [0, 2, 1, 0]].min() > 0.99


def test_of_gaussian_labels_it_goes_to_the_exact_one_with_smaller_steps():
    covariance = torch.diag(torch.tensor([0.3, 0.05, 0.1, 0.02])).double()
    pipe = mixture_pipeline(MEANS, covariance)
    errors = []
    for steps in (20, 80, 320):
        given = [seed % 3 for seed in range(48)]
        told, states, timesteps = evidence_of_states(pipe, [0, 1, 2], given, range(48), steps)
        x = torch.from_numpy(states).view(len(timesteps), 48, 1, 2, 2)
        exact = torch.stack([pipe.unet.label_posterior(x[i], int(t)) for i, t in enumerate(timesteps)]).log().numpy()
        expected = log_softmax(exact - exact[:1], axis=-1)
        errors.append(np.abs(np.exp(told) - np.exp(expected)).mean())
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_the_intervals_cover_the_exact_window():
    """200 repeats of 32 runs, beside the crossings of the exact mean entropy, by Gauss-Hermite quadrature."""
    repeats, seeds, steps = 200, 32, 60
    means = torch.tensor([[0.8], [-0.8]]).double()
    pipe = mixture_pipeline(means, torch.zeros(1, 1).double())
    given = [seed % 2 for seed in range(repeats * seeds)]
    told, _, timesteps = evidence_of_states(pipe, [0, 1], given, range(repeats * seeds), steps)

    alphas = pipe.scheduler.alphas_cumprod.double().numpy()
    noise, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    x = np.sqrt(alphas)[:, None] * 0.8 + np.sqrt(1 - alphas)[:, None] * noise
    odds = 2 * x * np.sqrt(alphas)[:, None] * 0.8 / (1 - alphas)[:, None]
    p = 1 / (1 + np.exp(-odds))
    entropy = -(p * np.log(np.maximum(p, 1e-300)) + (1 - p) * np.log(np.maximum(1 - p, 1e-300))) @ weights
    log_posterior = xr.DataArray(
        told.reshape(len(timesteps), repeats, seeds, 2), dims=("step", "repeat", "seed", "label"),
        coords={"label": [0, 1], "timestep": ("step", timesteps.astype(float))},
    )  # fmt: skip
    doubts = doubt(log_posterior, ()).sel(of=WHOLE)
    for level in WINDOW.values():
        exact = np.interp(level * np.log(2), entropy, np.arange(1000))
        found = falling_crossing(doubts, level, method="arcsine")
        covered = ((found["late"] <= exact) & (exact <= found["early"])).mean()
        assert 0.93 <= float(covered) <= 0.97
        assert abs(float(found["estimate"].mean()) - exact) < 10


def test_equal_labels_tell_nothing():
    pipe = mixture_pipeline(MEANS[[0, 1, 0]], 0.1 * torch.eye(4).double())
    for labels in ([0, 2], [1, 1]):
        told, _, _ = evidence_of_states(pipe, labels, [0, 1, 0], range(3), 20)
        np.testing.assert_allclose(told, np.log(0.5), atol=1e-9)


def test_batches_do_not_matter_and_any_schedule_with_alphas_does():
    unet = mixture_pipeline(MEANS, 0.1 * torch.eye(4).double()).unet
    pipe = ancestral(XAIPipeline(unet, DDIMScheduler(clip_sample=False)))
    assert isinstance(pipe.scheduler, DDPMScheduler)
    whole = label_evidence(pipe, [0, 1, 2], [0, 1], [5, 6], num_inference_steps=10)
    small = label_evidence(pipe, [0, 1, 2], [0, 1], [5, 6], num_inference_steps=10, max_rows=1)
    torch.testing.assert_close(whole, small)
    with pytest.raises(ValueError, match="with `alphas_cumprod`.*got FlowMatchEulerDiscreteScheduler"):
        ancestral(XAIPipeline(unet, FlowMatchEulerDiscreteScheduler()))
