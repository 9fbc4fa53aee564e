import numpy as np
import pytest
from skimage.metrics import structural_similarity

from diffusers_xai.plots import layer_distances, ssim_trajectory
from tests.plots.profiles import ATTENTION, CONV, RECORDED, STEPS, make_profile, without


def test_ssim_of_recorded_samples_equals_scikit_image():
    profile = without(make_profile(), "measures/ssim")
    (trace,) = ssim_trajectory(profile).data
    images = [*profile["samples"].values[:, 0], profile["final_sample"].values[0]]
    expected = [
        structural_similarity(a, b, win_size=7, channel_axis=0, data_range=2.0)
        for a, b in zip(images[:-1], images[1:], strict=True)
    ]
    np.testing.assert_allclose(trace.y, expected, atol=1e-4)
    np.testing.assert_allclose(trace.x, [1000 * (1 - step / STEPS) for step in RECORDED])


def test_stored_ssim_of_every_step_is_drawn_with_the_mean_on_top():
    profile = make_profile(samples=3)
    *singles, mean = ssim_trajectory(profile).data
    stored = profile["measures/ssim"].values
    assert len(singles) == 3
    for sample, trace in enumerate(singles):
        np.testing.assert_array_equal(trace.y, stored[:, sample])
    np.testing.assert_allclose(mean.y, stored.mean(axis=1), rtol=1e-6)
    assert mean.line.width > singles[0].line.width
    assert "mean of 3" in mean.name


@pytest.mark.parametrize("draw", [ssim_trajectory, layer_distances])
def test_time_runs_from_noise_to_image(draw):
    first, last = draw(make_profile()).layout.xaxis.range
    assert first == 1000
    assert last == 0


def test_layer_distances_are_frobenius_norms_averaged_over_samples():
    profile = make_profile(samples=2)
    figure = layer_distances(profile, [CONV, "downs.0.2.fn"])
    for trace, layer in zip(figure.data, (CONV, ATTENTION), strict=True):
        values = profile[f"activations/{layer}"].values.astype(np.float64)
        expected = np.sqrt((np.diff(values, axis=0) ** 2).sum(axis=(2, 3, 4))).mean(axis=1)
        np.testing.assert_allclose(trace.y, expected, rtol=1e-5)
    assert [trace.name for trace in figure.data] == ["mid_block2 5×4", "downs.0.2.fn 10×8"]
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data}) == 2


def test_attention_layers_are_the_default():
    assert [trace.name for trace in layer_distances(make_profile()).data] == ["downs.0.2.fn 10×8"]
    conv_only = without(make_profile(), f"activations/{ATTENTION}")
    assert [trace.name for trace in layer_distances(conv_only).data] == ["mid_block2 5×4"]


def test_what_is_not_recorded_is_an_error():
    with pytest.raises(KeyError, match="downs"):
        layer_distances(make_profile(), ["downs.0.2.fm"])
    nothing = without(make_profile(), f"activations/{ATTENTION}", f"activations/{CONV}")
    with pytest.raises(ValueError, match="record `Activations"):
        layer_distances(nothing)


def test_layer_names_are_escaped():
    profile = make_profile(layer_aliases={"<b>x": ATTENTION})
    assert layer_distances(profile).data[0].name.startswith("&lt;b&gt;x")
