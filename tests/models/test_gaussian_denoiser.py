"""The denoiser of Gaussian data, against numpy and exact solutions of the sampling equations."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffusers_xai import GaussianDenoiser, XAIPipeline
from tests.models.closed_forms import (
    ALPHAS,
    DENOISERS,
    DIM,
    FLOW,
    FLOWS,
    IMAGES,
    SCHEDULER,
    TIMES,
    correlated_images,
    moments,
    noisy,
    numbers,
)
from tests.reference import closed_form


SOLVERS = {
    "ddim": (DDIMScheduler(clip_sample=False), 1000),
    "euler": (EulerDiscreteScheduler(), 1000),
    "heun": (HeunDiscreteScheduler(), 300),
    "dpm": (DPMSolverMultistepScheduler(), 300),
    "flow": (FLOW, 1000),
}


@pytest.mark.parametrize("t", TIMES)
def test_the_gaussian_s_prediction_and_jacobian(t):
    mean, covariance = moments(IMAGES)
    model, x = DENOISERS["gaussian"], noisy()
    predicted, jacobian = model.predict_x0(x, t), model.jacobian(x, t)
    for i, vector in enumerate(numbers(x)):
        expected, uncertainty = closed_form.gaussian(mean, covariance, vector, ALPHAS[t])
        np.testing.assert_allclose(numbers(predicted)[i], expected, rtol=1e-9, atol=1e-10)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(jacobian[i].numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("images", [IMAGES[:9], IMAGES[[0, 1, 2, 0, 1, 2, 0, 1, 2]]], ids=["few", "repeated"])
def test_fewer_images_than_pixels(images):
    mean, covariance = moments(images)
    model, x = GaussianDenoiser.fit(images, SCHEDULER), noisy()
    expected, _ = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[300])
    np.testing.assert_allclose(numbers(model.predict_x0(x, 300))[0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", [1000, 750.5, 40])
def test_the_velocity_of_a_flow(t):
    """x_σ = (1 − σ) x_0 + σ ε: by the joint normal equations of x_0 and x_σ."""
    mean, covariance = moments(IMAGES)
    x, sigma = noisy(), t / 1000
    marginal = (1 - sigma) ** 2 * covariance + sigma**2 * np.eye(DIM)
    gain = (1 - sigma) * np.linalg.solve(marginal, covariance).T
    expected = mean + (numbers(x) - (1 - sigma) * mean) @ gain.T
    model = FLOWS["gaussian of a flow"]
    np.testing.assert_allclose(numbers(model.predict_x0(x, t)), expected, rtol=1e-9, atol=1e-10)
    velocity = (numbers(x) - expected) / sigma  # ε − x_0
    np.testing.assert_allclose(numbers(model(x, t).sample), velocity, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_deterministic_solvers_follow_the_exact_flow_of_a_gaussian(solver):
    """Along each eigenvector of Σ, (x_t − √ᾱ m) / √(ᾱλ + 1 − ᾱ) stays as it is."""
    scheduler, steps = SOLVERS[solver]
    mean, covariance = moments(IMAGES)
    variances, vectors = np.linalg.eigh(covariance)
    model = GaussianDenoiser.fit(IMAGES, scheduler)  # defaults of β differ between schedulers
    pipe = XAIPipeline(model, scheduler)
    final = []
    start = noisy()
    pipe(
        sample=start, batch_size=2, num_inference_steps=steps, callback_on_step_end=lambda p, i, t, x: final.append(x)
    )
    begin = numbers(start * getattr(scheduler, "init_noise_sigma", 1))
    if getattr(scheduler, "init_noise_sigma", 1) == 1:
        alpha = model.alphas_cumprod(scheduler.timesteps[0]).item()
    else:  # the state is x_t / √ᾱ there
        alpha = 1 / (1 + float(scheduler.sigmas[0]) ** 2)
        begin = begin * np.sqrt(alpha)
    along = (begin - np.sqrt(alpha) * mean) @ vectors / np.sqrt(alpha * variances + 1 - alpha)
    expected = mean + along * np.sqrt(variances.clip(0)) @ vectors.T
    np.testing.assert_allclose(numbers(final[-1]["sample"]), expected, atol=0.02)


def test_the_stochastic_sampler_draws_from_the_gaussian():
    images = correlated_images(500, shape=(1, 2, 2))
    pipe = XAIPipeline(GaussianDenoiser.fit(images, SCHEDULER), SCHEDULER)
    final, count = [], 4_000
    pipe(
        batch_size=count,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda p, i, t, x: final.append(x["sample"]) if i == 999 else None,
    )
    drawn = numbers(final[0])
    mean, covariance = moments(images)
    # The last step adds no noise: pixels scatter by its variance less.
    error = 4 * np.sqrt(np.diag(covariance) / count)
    assert (abs(drawn.mean(0) - mean) < error).all()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / count))


def test_half_precision_computes_in_single():
    model, x = DENOISERS["gaussian"], noisy()
    half = GaussianDenoiser.from_config(model.config)
    half.load_state_dict(model.state_dict())
    output = half.half()(x.half(), 0).sample  # 1 − ᾱ would be zero
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), model(x, 0).sample, rtol=0.05, atol=0.2)
