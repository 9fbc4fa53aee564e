"""How far images come back, against the exact posterior of Gaussians."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import MixtureDenoiser, XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling
from diffusers_xai.pipelines.label_evidence import ancestral
from diffusers_xai.pipelines.noise_and_back import noise_and_back


NAME = "noise-and-back"
STEPS, SPREAD, APART = 200, 0.03, 0.4
RATIOS = np.exp(np.linspace(9.0, -6.0, STEPS))  # ᾱ / (1 − ᾱ): its logarithm falls evenly
MEANS = torch.tensor([-APART / 2, APART / 2]).double().view(2, 1, 1, 1).expand(2, 1, 4, 4)


@pytest.fixture(scope="module")
def pipe():
    alphas = RATIOS / (1 + RATIOS)
    betas = 1 - alphas / np.append(1.0, alphas[:-1])
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, trained_betas=betas, clip_sample=False)
    covariance = SPREAD * torch.eye(16, dtype=torch.float64)
    return XAIPipeline(MixtureDenoiser.from_moments(MEANS, covariance[None], scheduler), scheduler)


@pytest.fixture(scope="module")
def result(pipe):
    sampling = Sampling([0, 1], range(100), STEPS, batch_size=100)
    return EXPERIMENTS[NAME].run(pipe, sampling, levels=10, null="none", max_rows=10**5)


def test_the_error_is_that_of_a_draw_from_the_exact_posterior(result):
    """Own: twice the posterior's variance. Of another mean: besides, what is left of the distance of the means."""
    data = result.data
    assert data["timestep"].values.tolist() == list(range(19, STEPS, 20))
    left = 1 / (1 + SPREAD * RATIOS[19::20])  # of the distance to the mean
    own = 2 * SPREAD * left
    other = own + left**2 * APART**2
    error, fresh = data["error"].mean("seed"), data["fresh_error"].mean("seed")
    # The steps make them smaller by several per cent, by 16 % where only twenty are left.
    np.testing.assert_allclose(error.sel(set="own"), own, rtol=0.2)
    np.testing.assert_allclose(error.sel(set="another set"), other, rtol=0.2)
    np.testing.assert_allclose(fresh, [2 * SPREAD, 2 * SPREAD + APART**2], rtol=0.1)
    expected = 1 - error / fresh
    np.testing.assert_allclose(data["returned"].mean("seed"), expected, atol=1e-9)
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS[NAME].table(result)
    assert table["images"].tolist() == ["own", "another set", *["own"] * 10, *["another set"] * 10]
    assert table["the model"][21].startswith(f"{expected[1, 9]:.3f} (")


@pytest.mark.parametrize(("name", "apart"), [("own", 0.0), ("another set", APART)])
def test_half_is_lost_where_it_is_of_the_exact_posterior(result, name, apart):
    """With a share l left, errors are 2 s l + l² d², which is half of a fresh image's at a certain l."""
    left = np.roots([apart**2, 2 * SPREAD, -(2 * SPREAD + apart**2) / 2]).max()
    exact = np.interp(-np.log((1 / left - 1) / SPREAD), -np.log(RATIOS), np.arange(STEPS))
    early, estimate, late = result.data["turn"].sel(set=name).values
    assert early <= exact <= late
    assert late - early < 25
    assert abs(estimate - exact) < 6


def test_hardly_noised_images_come_back_and_starts_are_checked(pipe):
    run = ancestral(pipe)
    images = MEANS
    back = noise_and_back(run, images, 0, [1, 2], [99, 0], num_inference_steps=100)
    torch.testing.assert_close(back[0], images, rtol=0, atol=0.05)
    assert (back[1] - images).abs().max() > 0.05
    alone = noise_and_back(run, images, 0, [1, 2], [0], num_inference_steps=100, max_rows=1)
    torch.testing.assert_close(alone[0], back[1])
    for starts in ([100], [1, 1]):
        with pytest.raises(ValueError, match=r"`starts` in 0\.\.99, each once"):
            noise_and_back(run, images, 0, [1, 2], starts, num_inference_steps=100)
    with pytest.raises(ValueError, match=r"levels in 2\.\.5, got 8"):
        EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], [1], 5), levels=8, null="none")
