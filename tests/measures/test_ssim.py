import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as skimage_ssim

from diffusers_xai.measures import ssim_contrast, ssim_luminance, ssim_structure, structural_similarity


def images(shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def reference(x, y, **options):
    options = {"win_size": 7, "data_range": 2.0, **options}
    return np.array([skimage_ssim(a, b, channel_axis=0, **options) for a, b in zip(x, y, strict=True)])


@pytest.mark.parametrize("shape", [(1, 3, 7, 7), (3, 3, 8, 8), (2, 1, 7, 19), (4, 3, 33, 16), (1, 4, 64, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_equals_scikit_image(shape, noise):
    x = images(shape)
    y = x + noise * images(shape, seed=1)
    got = structural_similarity(torch.from_numpy(x), torch.from_numpy(y))
    assert got.shape == shape[:1]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, reference(x, y), rtol=0, atol=1e-10)


def test_values_outside_the_range_are_not_clipped():
    x, y = images((2, 3, 16, 16), scale=4), images((2, 3, 16, 16), seed=1, scale=4)
    got = structural_similarity(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(got, reference(x, y), rtol=0, atol=1e-10)
    assert np.abs(got.numpy() - reference(x.clip(-1, 1), y.clip(-1, 1))).min() > 1e-3


@pytest.mark.parametrize("options", [{"data_range": 1.0}, {"data_range": 255.0}, {"win_size": 3}, {"win_size": 11}])
def test_options(options):
    x = images((2, 3, 12, 11))
    y = x + 0.2 * images(x.shape, seed=1)
    got = structural_similarity(torch.from_numpy(x), torch.from_numpy(y), **options)
    np.testing.assert_allclose(got, reference(x, y, **options), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_dtype_is_computed_in_float64(dtype):
    x, y = (torch.from_numpy(images((2, 3, 16, 16), seed)).to(dtype) for seed in (0, 1))
    got = structural_similarity(x, y)
    np.testing.assert_allclose(got, reference(x.double().numpy(), y.double().numpy()), rtol=0, atol=1e-10)


def test_smooth_images_with_a_large_offset_stay_exact():
    ramp = np.linspace(0, 1, 32)[None, None, None, :] * np.ones((1, 3, 32, 1))
    x, y = 100 + ramp, 100 + ramp**2
    got = structural_similarity(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(got, reference(x, y), rtol=0, atol=1e-6)


def test_transposed_memory():
    x, y = images((2, 16, 3, 20)), images((2, 16, 3, 20), seed=1)
    got = structural_similarity(torch.from_numpy(x).transpose(1, 2), torch.from_numpy(y).transpose(1, 2))
    np.testing.assert_allclose(got, reference(x.swapaxes(1, 2), y.swapaxes(1, 2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 3, 6, 9), (1, 3, 6, 9)), {}, r"at least 7x7 pixels \(win_size=7\), got 6x9"),
        (((1, 3, 9, 6), (1, 3, 9, 6)), {}, "got 9x6"),
        (((1, 3, 9, 9), (1, 3, 9, 8)), {}, r"got \(1, 3, 9, 9\) and \(1, 3, 9, 8\)"),
        (((3, 9, 9), (3, 9, 9)), {}, r"\(batch, channel, height, width\), got \(3, 9, 9\)"),
        (((1, 3, 9, 9), (1, 3, 9, 9)), {"win_size": 4}, "odd win_size of at least 3, got 4"),
        (((1, 3, 9, 9), (1, 3, 9, 9)), {"win_size": 1}, "odd win_size of at least 3, got 1"),
        (((1, 3, 9, 9), (1, 3, 9, 9)), {"data_range": 0}, "positive data_range, got 0"),
        (((1, 3, 9, 9), (1, 3, 9, 9)), {"data_range": float("nan")}, "positive data_range, got nan"),
    ],
)
def test_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        structural_similarity(*(torch.zeros(shape) for shape in shapes), **options)


def windows(image, size=7):
    """Every window of a (channel, height, width) image as a row (window, pixel), by hand."""
    cut = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(1, 2))
    return cut.reshape(-1, size * size)


def test_parts_are_those_of_the_thesis():
    x = images((2, 3, 10, 9))
    y = 0.6 * x + 0.3 * images(x.shape, seed=1) + 0.2
    got = [part(torch.from_numpy(x), torch.from_numpy(y)) for part in (ssim_luminance, ssim_contrast, ssim_structure)]
    c1, c2 = 0.02**2, 0.06**2
    for sample in range(2):
        a, b = windows(x[sample]), windows(y[sample])
        mean_a, mean_b, std_a, std_b = a.mean(1), b.mean(1), a.std(1, ddof=1), b.std(1, ddof=1)
        covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).sum(1) / (a.shape[1] - 1)
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        contrast = (2 * std_a * std_b + c2) / (std_a**2 + std_b**2 + c2)
        structure = (covariance + c2 / 2) / (std_a * std_b + c2 / 2)
        for part, expected in zip(got, (luminance, contrast, structure), strict=True):
            assert part[sample].item() == pytest.approx(expected.mean(), abs=1e-10)
        assert (luminance * contrast * structure).mean() == pytest.approx(reference(x, y)[sample], abs=1e-10)


def test_parts_tell_brightness_contrast_and_structure_apart():
    x = torch.from_numpy(images((1, 3, 16, 16)))
    brighter, stronger = x + 0.5, 2 * x - x.mean((2, 3), keepdim=True)
    assert ssim_luminance(x, brighter).item() < 0.9
    assert ssim_contrast(x, brighter).item() == pytest.approx(1, abs=1e-9)
    assert ssim_structure(x, brighter).item() == pytest.approx(1, abs=1e-9)
    assert ssim_contrast(x, stronger).item() == pytest.approx(0.8, abs=1e-3)  # 2·2 / (1 + 4)
    assert ssim_structure(x, stronger).item() == pytest.approx(1, abs=1e-3)


def test_the_gradient_is_finite_at_flat_images():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    structural_similarity(x, torch.rand(1, 1, 8, 8, dtype=torch.float64)).sum().backward()
    assert x.grad.isfinite().all()
