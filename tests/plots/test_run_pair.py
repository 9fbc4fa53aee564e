import numpy as np
import plotly.graph_objects as go
import pytest
from skimage.metrics import structural_similarity

from diffusers_xai.plots import run_pair, run_similarity
from diffusers_xai.profile import DiffusionProfile
from tests.plots.profiles import make_profile, without


def changed(profile: DiffusionProfile) -> DiffusionProfile:
    rng = np.random.default_rng(1)
    arrays = {name: profile[name] for name in ("samples", "x0", "final_sample")}
    noisy = {name: array + rng.normal(0, 0.2, array.shape).astype(np.float32) for name, array in arrays.items()}
    return DiffusionProfile(noisy, profile.provenance)


def test_the_difference_and_the_similarity_of_what_is_seen():
    intact = make_profile(samples=2)
    edited = changed(intact)
    figure = run_pair(intact, edited, count=4, sample=1)
    shown = [(intact["x0"].values[i, 1], edited["x0"].values[i, 1]) for i in (0, 4, 8)]
    shown.append((intact["final_sample"].values[1], edited["final_sample"].values[1]))
    maps = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    assert len(maps) == len(figure.layout.annotations) == 4
    for (one, other), trace, caption in zip(shown, maps, figure.layout.annotations, strict=True):
        one, other = one.clip(-1, 1), other.clip(-1, 1)
        np.testing.assert_allclose(trace.z, np.abs(one - other).mean(axis=0), rtol=1e-6)
        expected = structural_similarity(one, other, win_size=7, channel_axis=0, data_range=2.0)
        assert float(caption.text.removeprefix("SSIM ")) == pytest.approx(expected, abs=6e-4)
    assert len({(trace.zmin, trace.zmax) for trace in maps}) == 1
    assert list(figure.layout.xaxis.ticktext) == ["t = 1000", "t = 666.7", "t = 333.3", "result"]


def test_results_alone_are_enough():
    intact = make_profile()
    figure = run_pair(without(intact, "x0"), changed(intact))
    assert list(figure.layout.xaxis.ticktext) == ["result"]
    with pytest.raises(KeyError):
        run_pair(intact, without(intact, "final_sample"))


def test_similarity_over_time_equals_scikit_image():
    intact = make_profile(samples=2)
    edited = changed(intact)
    (trace,) = run_similarity(intact, edited).data
    expected = np.zeros(len(trace.y))
    for step, sample in np.ndindex(len(expected), 2):
        pair = [profile["samples"].values[step, sample] for profile in (intact, edited)]
        expected[step] += structural_similarity(*pair, win_size=7, channel_axis=0, data_range=2.0) / 2
    np.testing.assert_allclose(trace.y, expected, atol=1e-4)
    np.testing.assert_array_equal(trace.x, intact["samples"]["timestep"].values)
