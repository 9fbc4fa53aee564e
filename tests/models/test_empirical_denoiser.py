"""The denoiser of given images, against numpy and scipy."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_xai import XAIPipeline
from tests.models.closed_forms import ALPHAS, DENOISERS, IMAGES, LABELS, TIMES, noisy, numbers
from tests.reference import closed_form


@pytest.mark.parametrize("t", TIMES)
def test_the_images_shares_prediction_and_covariance(t):
    vectors = numbers(IMAGES)
    model = DENOISERS["labelled images"]
    x = np.sqrt(ALPHAS[t]) * IMAGES[10:12] + np.sqrt(1 - ALPHAS[t]) * noisy()
    for i, vector in enumerate(numbers(x)):
        mean, uncertainty, weights = closed_form.empirical(vectors, vector, ALPHAS[t])
        np.testing.assert_allclose(model.posterior(x, t)[i].numpy(), weights, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[i], mean, rtol=1e-7, atol=1e-8)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[i].numpy(), expected, rtol=1e-5, atol=1e-6)
        by_label = [weights[label == LABELS.numpy()].sum() for label in range(3)]
        np.testing.assert_allclose(model.label_posterior(x, t)[i].numpy(), by_label, rtol=1e-6, atol=1e-12)
        own, _, shares = closed_form.empirical(vectors[LABELS == 2], vector, ALPHAS[t])
        labels = torch.tensor([2, 2])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t, labels))[i], own, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(model.posterior(x, t, labels)[i, LABELS == 2], shares, rtol=1e-6, atol=1e-12)
        assert model.posterior(x, t, labels)[i, LABELS != 2].sum() == 0


def test_at_the_end_the_images_themselves_come_out():
    pipe = XAIPipeline(DENOISERS["labelled images"], DDIMScheduler(clip_sample=False))
    final = []
    pipe(
        class_labels=[0, 1, 2],
        num_inference_steps=200,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda p, i, t, x: final.append(x["sample"]),
    )
    for label, drawn in enumerate(numbers(final[-1])):
        distances = np.abs(numbers(IMAGES) - drawn).max(1)
        assert distances.min() < 1e-3
        assert LABELS[distances.argmin()] == label
