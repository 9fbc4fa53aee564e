"""Measures that are taken at every step."""

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

from diffusers_xai import Samples
from tests.tiny import make_pipeline


def test_measures_compare_every_state_with_the_next():
    pipe, sample = make_pipeline("xai")
    names = ("ssim", "ssim_contrast", "psnr", "mse")
    profile = sample(record=[Samples(measures=names)]).profile
    states = np.stack([*profile["samples"].values, profile["final_sample"].values]).astype(float)
    for name, expected in (
        ("mse", mean_squared_error),
        ("psnr", lambda a, b: peak_signal_noise_ratio(a, b, data_range=2.0)),
    ):
        by_hand = [
            [expected(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(states, states[1:], strict=False)
        ]
        np.testing.assert_allclose(profile[f"measures/{name}"].values, by_hand, rtol=1e-9)
    few = sample(record=[Samples(measures=names, every=3)]).profile
    for name in names:  # at every step, also where no sample is kept
        np.testing.assert_array_equal(few[f"measures/{name}"].values, profile[f"measures/{name}"].values)
        computed = profile.trajectory(name, **({"win_size": 7} if name.startswith("ssim") else {}))
        assert torch.allclose(torch.from_numpy(computed.values), torch.from_numpy(few[f"measures/{name}"].values))


def test_measures_of_layers_are_refused():
    with pytest.raises(ValueError, match=r"from \['ssim', 'ssim_luminance', .*'mse'\], got \['distance'\]"):
        Samples(measures=("ssim", "distance"))
