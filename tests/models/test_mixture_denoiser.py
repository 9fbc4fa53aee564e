"""The denoiser of labelled Gaussians, against numpy and scipy."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import MixtureDenoiser, XAIPipeline
from tests.models.closed_forms import ALPHAS, DENOISERS, DIM, IMAGES, LABELS, SCHEDULER, SHAPE, TIMES, noisy, numbers
from tests.reference import closed_form


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("shared", [True, False])
def test_the_mixture_s_prediction_covariance_and_label_posterior(t, shared):
    groups = [numbers(IMAGES[label == LABELS]) for label in range(3)]
    means = [group.mean(0) for group in groups]
    shares = np.array([len(group) for group in groups]) / 60
    if shared:
        away = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
        covariances = [away.T @ away / 60] * 3
    else:  # a ridge, so that none is singular
        covariances = [np.cov(group.T, bias=True) + 0.02 * np.eye(DIM) for group in groups]
    model = MixtureDenoiser.from_moments(
        torch.from_numpy(np.stack(means)).unflatten(1, SHAPE),
        torch.from_numpy(np.stack(covariances[:1] if shared else covariances)),
        SCHEDULER,
        shares=shares.tolist(),
    )
    if shared:
        fitted = MixtureDenoiser.fit(IMAGES, LABELS, SCHEDULER)
        torch.testing.assert_close(fitted.predict_x0(noisy(), t), model.predict_x0(noisy(), t), rtol=1e-7, atol=1e-8)
    x = np.sqrt(ALPHAS[t]) * IMAGES[:2] + np.sqrt(1 - ALPHAS[t]) * noisy()
    for i, vector in enumerate(numbers(x)):
        mean, uncertainty, weights = closed_form.mixture(means, covariances, shares, vector, ALPHAS[t])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[i], mean, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(model.label_posterior(x, t)[i].numpy(), weights, rtol=1e-7, atol=1e-12)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[i].numpy(), expected, rtol=1e-6, atol=1e-6)
        alone, _ = closed_form.gaussian(means[1], covariances[1], vector, ALPHAS[t])
        under_label = model.predict_x0(x, t, torch.tensor([1, 1]))
        np.testing.assert_allclose(numbers(under_label)[i], alone, rtol=1e-8, atol=1e-8)


def test_components_that_share_a_label():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, DIM))
    covariance, shares = 0.1 * np.eye(DIM), [0.2, 0.5, 0.3]
    model = MixtureDenoiser.from_moments(
        torch.from_numpy(means).unflatten(1, SHAPE),
        torch.from_numpy(covariance)[None],
        SCHEDULER,
        labels=[0, 1, 0],
        shares=shares,
    )
    x = noisy()
    for label, members in ((0, [0, 2]), (1, [1])):
        of_members = [shares[m] for m in members]
        expected = closed_form.mixture(
            means[members], [covariance] * len(members), of_members, numbers(x)[0], ALPHAS[700]
        )
        predicted = model.predict_x0(x, 700, torch.full((2,), label))
        np.testing.assert_allclose(numbers(predicted)[0], expected[0], rtol=1e-9)
    weights = closed_form.mixture(means, [covariance] * 3, shares, numbers(x)[0], ALPHAS[700])[2]
    np.testing.assert_allclose(model.label_posterior(x, 700)[0], [weights[0] + weights[2], weights[1]], rtol=1e-9)


def test_a_label_that_is_far_from_true_is_no_nan():
    means = torch.zeros(2, *SHAPE)
    means[1] = 100.0
    model = MixtureDenoiser.from_moments(means, 0.01 * torch.eye(DIM)[None], SCHEDULER)
    x = means[:1].clone().requires_grad_()
    predicted = model.predict_x0(x, 10, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(predicted.sum(), x)
    assert predicted.isfinite().all()
    assert gradient.isfinite().all()


def test_a_timestep_for_each_sample():
    model, x = DENOISERS["mixture"], noisy()
    both = model(x, torch.tensor([900, 30]), torch.tensor([0, -1])).sample
    torch.testing.assert_close(both[:1], model(x[:1], 900, torch.tensor([0])).sample)
    torch.testing.assert_close(both[1:], model(x[1:], 30).sample)


def test_guidance_extrapolates_from_the_null_label():
    pipe, x = XAIPipeline(DENOISERS["mixture"], DDIMScheduler(clip_sample=False)), noisy(batch=1)
    states = []
    pipe(
        class_labels=[1],
        guidance_scale=2.0,
        sample=x,
        num_inference_steps=2,
        callback_on_step_end=lambda p, i, t, tensors: states.append(tensors["sample"]),
    )
    t, after = 500, 0
    labelled, plain = (pipe.unet.predict_x0(x, t, label) for label in (torch.tensor([1]), None))
    predicted = 2 * labelled - plain
    noise = (x - ALPHAS[t] ** 0.5 * predicted) / (1 - ALPHAS[t]) ** 0.5
    expected = ALPHAS[after] ** 0.5 * predicted + (1 - ALPHAS[after]) ** 0.5 * noise
    torch.testing.assert_close(states[0], expected, rtol=1e-5, atol=1e-6)
