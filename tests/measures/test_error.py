import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error as skimage_mse
from skimage.metrics import peak_signal_noise_ratio as skimage_psnr

from diffusers_xai.measures import mean_squared_error, peak_signal_to_noise_ratio


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("data_range", [2.0, 1.0])
def test_equal_scikit_image(dtype, data_range):
    x, y = (torch.randn(3, 3, 8, 9, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    pairs = list(zip(x.double().numpy(), y.double().numpy(), strict=True))
    np.testing.assert_allclose(mean_squared_error(x, y), [skimage_mse(a, b) for a, b in pairs], rtol=1e-12)
    expected = [skimage_psnr(a, b, data_range=data_range) for a, b in pairs]
    np.testing.assert_allclose(peak_signal_to_noise_ratio(x, y, data_range=data_range), expected, rtol=1e-12)


def test_equal_images():
    x = torch.ones(2, 3, 4, 4)
    assert mean_squared_error(x, x).tolist() == [0, 0]
    assert peak_signal_to_noise_ratio(x, x).tolist() == [float("inf")] * 2


def test_bad_input():
    with pytest.raises(ValueError, match=r"one shape \(batch, ...\), got \(1, 2\) and \(1, 3\)"):
        mean_squared_error(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="positive data_range, got 0"):
        peak_signal_to_noise_ratio(torch.zeros(1, 2), torch.zeros(1, 2), data_range=0)
