import numpy as np
import pytest
import torch

from diffusers_xai.measures import layer_distance


def activations(seed, shape=(3, 5, 4, 6)):
    return np.random.default_rng(seed).normal(1, 3, shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_is_the_frobenius_norm_of_the_difference(dtype):
    a, b = (torch.from_numpy(activations(seed)).to(dtype) for seed in (0, 1))
    got = layer_distance(a, b)
    expected = [np.linalg.norm((x - y).ravel()) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_any_number_of_axes():
    a, b = activations(0, (2, 7)), activations(1, (2, 7))
    got = layer_distance(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(got, np.sqrt(((a - b) ** 2).sum(1)), rtol=1e-12)


def test_half_precision_does_not_overflow():
    a = torch.full((1, 2, 8, 8), 60000.0, dtype=torch.float16)
    assert layer_distance(a, -a).item() == pytest.approx(120000 * np.sqrt(128))  # 60000 is a float16


def test_minmax_scales_each_sample_by_itself():
    a, b = activations(0), activations(1)
    got = layer_distance(torch.from_numpy(a), torch.from_numpy(b), normalize="minmax")
    scaled = [[(x - x.min()) / (x.max() - x.min()) for x in batch] for batch in (a, b)]
    np.testing.assert_allclose(
        got, [np.linalg.norm((x - y).ravel()) for x, y in zip(*scaled, strict=True)], rtol=1e-12
    )


def test_minmax_of_a_constant_sample_is_zero():
    constant, ramp = torch.full((1, 4), 7.0), torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    got = layer_distance(constant, ramp, normalize="minmax").item()
    assert got == pytest.approx(np.linalg.norm([0, 0.25, 0.5, 1]))


@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((4,), (4,))])
def test_shapes_must_agree(a, b):
    with pytest.raises(ValueError, match=r"one shape \(batch, ...\), got"):
        layer_distance(torch.zeros(a), torch.zeros(b))


def test_unknown_normalization():
    with pytest.raises(ValueError, match="None or \"minmax\", got 'max'"):
        layer_distance(torch.zeros(1, 2), torch.zeros(1, 2), normalize="max")
