"""Covariances of few images, against numpy."""

import numpy as np
import pytest
import torch

from diffusers_xai import GaussianDenoiser
from tests.models.closed_forms import (
    ALPHAS,
    DENOISERS,
    DIM,
    IMAGES,
    SCHEDULER,
    SHAPE,
    TIMES,
    correlated_images,
    moments,
    noisy,
    numbers,
)
from tests.reference import closed_form


def test_few_components_are_those_of_probabilistic_pca():
    mean, covariance = moments(IMAGES)
    variances, components = np.linalg.eigh(covariance)
    rest = variances[:-5].mean()
    components = components[:, -5:]
    covariance = rest * np.eye(DIM) + components * (variances[-5:] - rest) @ components.T
    expected, _ = closed_form.gaussian(mean, covariance, numbers(noisy())[0], ALPHAS[600])
    predicted = DENOISERS["gaussian of few components"].predict_x0(noisy(), 600)
    np.testing.assert_allclose(numbers(predicted)[0], expected, rtol=1e-9, atol=1e-10)


def test_many_large_images_are_fitted_by_their_leading_components(monkeypatch):
    monkeypatch.setattr("diffusers_xai.models.covariances.MAX_EXACT", 20)
    rng = np.random.default_rng(0)
    images = torch.from_numpy((rng.normal(size=(50, 4)) @ rng.normal(size=(4, DIM))).reshape(-1, *SHAPE))
    images = images + 0.01 * torch.from_numpy(rng.normal(size=images.shape))
    with pytest.raises(ValueError, match="at most 20 components, got .*: choose fewer with `rank`"):
        GaussianDenoiser.fit(images, SCHEDULER)
    model = GaussianDenoiser.fit(images, SCHEDULER, rank=4)
    expected, _ = closed_form.gaussian(*moments(images), numbers(noisy())[0], ALPHAS[300])
    np.testing.assert_allclose(numbers(model.predict_x0(noisy(), 300))[0], expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(3, 4, 3), (1, 5, 4), (2, 3, 2, 4)], ids=["image", "grey", "video"])
def test_a_spectrum_is_the_covariance_of_all_shifts(shape):
    images, x = correlated_images(30, seed=2, shape=shape), noisy(shape=shape)
    mean, covariance = numbers(images).mean(0), closed_form.texture_covariance(images.numpy())
    model = GaussianDenoiser.fit(images, SCHEDULER, covariance_type="spectrum")
    for t in TIMES:
        expected, uncertainty = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[t])
        np.testing.assert_allclose(numbers(model.predict_x0(x, t))[0], expected, rtol=1e-8, atol=1e-9)
        expected = np.sqrt(ALPHAS[t]) / (1 - ALPHAS[t]) * uncertainty
        np.testing.assert_allclose(model.jacobian(x, t)[0].numpy(), expected, rtol=1e-7, atol=1e-7)


GREY = correlated_images(9, seed=4, shape=(1, 4, 4)).expand(-1, 3, -1, -1)  # waves without colour have no variance


@pytest.mark.parametrize("images", [IMAGES[:9], GREY, correlated_images(12, shape=(1, 2, 3, 4))], ids=len)
def test_a_shrunk_covariance_is_ledoit_and_wolf_s_beside_the_texture(images):
    mean, own = moments(images)
    variance, leading = (part[..., -1:] for part in np.linalg.eigh(own))  # one of 9 to 15 images
    rest = numbers(images) - mean
    rest = rest - rest @ leading @ leading.T
    texture = closed_form.texture_covariance(rest.reshape(images.shape))
    variances, waves = np.linalg.eigh(texture)
    there = variances > 1e-9 * variances.max()
    white = rest @ waves[:, there] / np.sqrt(variances[there])
    of_white = white.T @ white / len(white)
    chance = sum(((np.outer(image, image) - of_white) ** 2).sum() for image in white) / len(white) ** 2
    share = chance / ((of_white - np.eye(there.sum())) ** 2).sum()
    assert 0.05 < share < 0.95
    covariance = variance * leading @ leading.T + (1 - share) * rest.T @ rest / len(rest) + share * texture
    x = noisy(shape=images.shape[1:])
    expected, _ = closed_form.gaussian(mean, covariance, numbers(x)[0], ALPHAS[300])
    model = GaussianDenoiser.fit(images, SCHEDULER, covariance_type="shrunk")
    np.testing.assert_allclose(numbers(model.predict_x0(x, 300))[0], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_images_that_are_all_alike_have_no_covariance(count):
    model = GaussianDenoiser.fit(IMAGES[:1].expand(count, -1, -1, -1), SCHEDULER, covariance_type="shrunk")
    torch.testing.assert_close(model.predict_x0(noisy(), 300), IMAGES[:1].expand(2, -1, -1, -1))


def test_of_few_images_the_shrunk_covariance_is_nearest_to_the_truth():
    """A light that is the same everywhere, and a grain that is stronger in the middle."""
    side, count, alpha = 10, 30, ALPHAS[300]
    grid = np.arange(side) - (side - 1) / 2
    near = np.exp(-((grid[:, None] - grid) ** 2) / 2)
    strength = np.exp(-(np.add.outer(grid**2, grid**2)).ravel() / 20)
    truth = 0.3 + np.outer(strength, strength) * np.kron(near, near)
    drawn = np.random.default_rng(0).multivariate_normal(np.zeros(side**2), truth, size=(4, count))

    def gain(covariance):
        return np.sqrt(alpha) * np.linalg.solve(alpha * covariance + (1 - alpha) * np.eye(side**2), covariance)

    def misses(**kind):
        """Squared error of the Jacobian, of that of the truth."""
        found = []
        for images in drawn:
            model = GaussianDenoiser.fit(images.reshape(-1, 1, side, side), SCHEDULER, **kind)
            jacobian = model.jacobian(torch.zeros(1, 1, side, side, dtype=torch.float64), 300)[0].numpy()
            found.append(((jacobian - gain(truth)) ** 2).sum() / (gain(truth) ** 2).sum())
        return np.mean(found)

    shrunk = misses(covariance_type="shrunk")
    others = [misses(), misses(rank=count // 8), misses(rank=count // 4), misses(covariance_type="spectrum")]
    assert shrunk < 0.8 * min(others)
