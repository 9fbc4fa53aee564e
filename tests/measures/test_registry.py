import dataclasses

import pytest
import torch

from diffusers_xai.measures import MEASURES


def test_names():
    assert all(measure.name == name for name, measure in MEASURES.items())
    assert {"ssim", "ssim_luminance", "ssim_contrast", "ssim_structure", "psnr", "mse"} < MEASURES.keys()


@pytest.mark.parametrize("measure", MEASURES.values(), ids=lambda measure: measure.name)
def test_declared_direction_and_bounds_hold(measure):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    same, near, far, opposite = (measure.function(x, y) for y in (x, x + 0.1 * noise, x + noise, -x))
    low, high = measure.bounds
    for values in (same, near, far, opposite):
        assert values.shape == (2,)
        assert ((values >= low) & (values <= high + 1e-12)).all()
    assert ((same > near) & (near > far)).all() if measure.higher_is_better else ((same < near) & (near < far)).all()
    best = high if measure.higher_is_better else low
    assert measure.of_equals == best
    assert same.tolist() == pytest.approx([best, best])


def test_a_measure_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MEASURES["ssim"].name = "other"
