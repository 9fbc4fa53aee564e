import numpy as np
import pytest
import torch

from diffusers_xai.measures import channel_sums, max_channel, resize_mask, top_channels
from tests.reference.bilinear import bilinear


def activation(shape=(3, 6, 4, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (2, 3), (16, 24), (5, 7), (1, 1)])
def test_mask_is_resized_bilinearly(size):
    mask = np.zeros((8, 12), dtype=bool)
    mask[2:6, 3:9] = True
    got = resize_mask(mask, *size)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, bilinear(mask, *size), atol=1e-6)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sums_and_argmax_equal_a_plain_loop(dtype, masked, absolute):
    tensor = torch.from_numpy(activation()).to(dtype)
    mask = np.random.default_rng(1).random((8, 10)) > 0.5 if masked else None
    weights = bilinear(mask, 4, 5) if masked else np.ones((4, 5))
    values = tensor.double().numpy()
    values = np.abs(values) if absolute else values
    expected = np.array([[(channel * weights).sum() for channel in sample] for sample in values])

    sums = channel_sums(tensor, mask, absolute)
    channels = max_channel(tensor, mask=mask, absolute=absolute)
    np.testing.assert_allclose(sums, expected, rtol=1e-6, atol=1e-6)
    assert sums.dtype == torch.float64
    assert channels.dtype == torch.int64
    assert channels.tolist() == expected.argmax(axis=1).tolist()


def test_signs_cancel_unless_absolute():
    values = torch.zeros(1, 2, 2, 2)
    values[0, 0] = torch.tensor([[9.0, -9.0], [9.0, -9.0]])
    values[0, 1] = 1.0
    assert max_channel(values).tolist() == [1]
    assert max_channel(values, absolute=True).tolist() == [0]


def test_the_mask_decides():
    values = torch.zeros(1, 2, 4, 4)
    values[0, 0, :, 0] = 5
    values[0, 1, :, 3] = 1
    right = torch.zeros(4, 4, dtype=torch.bool)
    right[:, 3] = True
    assert max_channel(values).tolist() == [0]
    assert max_channel(values, mask=right).tolist() == [1]


def test_half_precision_sums_do_not_overflow():
    values = torch.full((1, 2, 64, 64), 100.0, dtype=torch.float16)
    values[:, 1] += 1
    assert channel_sums(values).tolist() == [[409600.0, 413696.0]]
    assert max_channel(values).tolist() == [1]


def test_the_first_of_equal_channels():
    assert max_channel(torch.ones(2, 5, 3, 3)).tolist() == [0, 0]


@pytest.mark.parametrize("absolute", [False, True])
def test_top_channels_are_sorted(absolute):
    values = activation()
    mask = np.random.default_rng(1).random((8, 10)) > 0.5
    sums = ((np.abs(values) if absolute else values) * bilinear(mask, 4, 5)).sum(axis=(2, 3))
    got = top_channels(torch.from_numpy(values), 4, mask=mask, absolute=absolute)
    assert got.tolist() == [sorted(range(6), key=lambda c: -sample[c])[:4] for sample in sums]
    assert top_channels(torch.ones(1, 5, 3, 3), 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("k", [0, 4, -1])
def test_no_more_channels_than_there_are(k):
    with pytest.raises(ValueError, match=rf"k in 1\.\.3, the number of channels, got {k}"):
        top_channels(torch.ones(1, 3, 2, 2), k)


def test_nan_has_no_largest_channel():
    values = torch.zeros(1, 3, 2, 2)
    values[0, 1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        max_channel(values)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((8, 8), dtype=bool), r"at least one True pixel, got an empty one of \(8, 8\)"),
        (np.ones((8, 8)), r"dtype bool, got shape \(8, 8\) and float64"),
        (np.ones((1, 8, 8), dtype=bool), r"shape \(height, width\) and dtype bool, got shape \(1, 8, 8\)"),
        (np.pad([[True]], ((0, 7), (0, 7))), r"left at the layer's size \(2, 2\), got 1 pixels of \(8, 8\)"),
    ],
)
def test_mask_errors(mask, message):
    with pytest.raises(ValueError, match=message):
        max_channel(torch.ones(1, 3, 2, 2), mask=mask)


def test_activation_must_be_an_image():
    with pytest.raises(ValueError, match=r"\(batch, channel, height, width\), got shape \(3, 4\)"):
        channel_sums(torch.ones(3, 4))
