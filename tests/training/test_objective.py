import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from training.objective import (
    diffusion_loss,
    draw_timesteps,
    implied_clean_and_noise,
    min_snr_weights,
    training_target,
)


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEPS = torch.tensor([0, 50, 400, 999])


def alpha_bar(timesteps):
    """The thesis's linear schedule, in plain numpy."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timesteps.numpy()]


def scheduler(prediction_type):
    return DDPMScheduler(beta_schedule="linear", prediction_type=prediction_type)


def images(seed):
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_follows_its_definition(prediction_type):
    x0, noise = images(0), images(1)
    a = torch.tensor(alpha_bar(TIMESTEPS), dtype=torch.float32).reshape(-1, 1, 1, 1)
    expected = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0, "sample": x0}
    target = training_target(scheduler(prediction_type), x0, noise, TIMESTEPS)
    torch.testing.assert_close(target, expected[prediction_type], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_implies_the_clean_image_and_the_noise(prediction_type):
    x0, noise = images(0), images(1)
    timesteps = torch.tensor([30, 50, 300, 600])
    a = torch.tensor(alpha_bar(timesteps), dtype=torch.float32).reshape(-1, 1, 1, 1)
    noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
    prediction = {"epsilon": noise, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0, "sample": x0}
    clean, implied = implied_clean_and_noise(scheduler(prediction_type), prediction[prediction_type], noisy, timesteps)
    torch.testing.assert_close(clean, x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(implied, noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("power", [1.0, 0.33])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_make_the_clipped_x0_loss(prediction_type, power):
    """Whatever is predicted, weight x its squared error = min(SNR, 5) ** power x squared error of x_0."""
    a = alpha_bar(TIMESTEPS)
    snr = a / (1 - a)
    x0_error = 0.1
    noise_error = np.sqrt(a) / np.sqrt(1 - a) * x0_error  # of the same prediction: x_t is fixed
    v_error = np.sqrt(a) * noise_error + np.sqrt(1 - a) * x0_error
    error = {"epsilon": noise_error, "v_prediction": v_error, "sample": np.full(4, x0_error)}[prediction_type]
    weights = min_snr_weights(scheduler(prediction_type), TIMESTEPS, 5.0, power).numpy()
    np.testing.assert_allclose(weights * error**2, np.minimum(snr, 5) ** power * x0_error**2, rtol=1e-3)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_loss(loss, power):
    a, b, weights = images(2), images(3), torch.tensor([1.0, 0.0, 2.0, 0.5])
    per_image = (np.abs(a.numpy() - b.numpy()) ** power).mean(axis=(1, 2, 3))
    assert diffusion_loss(a, b, loss).item() == pytest.approx(per_image.mean(), rel=1e-5)
    assert diffusion_loss(a, b, loss, weights).item() == pytest.approx((per_image * weights.numpy()).mean(), rel=1e-5)


def test_stratified_timesteps_fall_one_into_each_part():
    for seed in range(20):
        timesteps = draw_timesteps(8, 1000, True, torch.Generator().manual_seed(seed))
        assert sorted((timesteps // 125).tolist()) == list(range(8))


def test_plain_timesteps_cover_the_schedule():
    timesteps = draw_timesteps(50_000, 1000, False, torch.Generator().manual_seed(0))
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=5)
