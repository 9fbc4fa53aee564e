import numpy as np
import pytest
from skimage.metrics import structural_similarity as skimage_ssim

from diffusers_xai.profile import DiffusionProfile
from tests.profile.profiles import ALIAS, IMAGE, LAYER, array, make_profile


ACTIVATIONS = f"activations/{LAYER}"


def ssim(x, y):
    """(sample, channel, height, width) -> (sample,)."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    return [skimage_ssim(a, b, channel_axis=0, data_range=2.0, win_size=7) for a, b in zip(x, y, strict=True)]


def distance(x, y):
    return np.sqrt(((np.asarray(x, dtype=float) - np.asarray(y, dtype=float)) ** 2).sum((-1, -2, -3)))


def test_ssim_along_the_run_ends_at_the_final_sample():
    profile = make_profile()
    got = profile.trajectory("ssim")
    states = [*profile["samples"].values, profile["final_sample"].values]
    np.testing.assert_allclose(got, [ssim(states[i], states[i + 1]) for i in range(3)], rtol=0, atol=1e-10)
    assert got.dims == ("step", "sample")
    assert got.name == "ssim"
    assert got["step"].values.tolist() == [0, 5, 9]
    assert got["timestep"].values.tolist() == [900, 500, 100]


def test_ssim_without_the_final_sample_is_one_shorter():
    profile = make_profile(final_sample=None)
    states = profile["samples"].values
    got = profile.trajectory()
    np.testing.assert_allclose(got, [ssim(states[i], states[i + 1]) for i in range(2)], rtol=0, atol=1e-10)
    assert got["step"].values.tolist() == [0, 5]


def test_a_stored_measure_is_returned_and_options_compute_anew():
    stored = array(dims=(), steps=list(range(10)), timesteps=[float(9 - i) for i in range(10)])
    profile = make_profile(**{"measures/ssim": stored, "measures/lpips": stored})
    assert profile.trajectory("ssim") is profile["measures/ssim"]
    assert profile.trajectory("lpips") is profile["measures/lpips"]
    assert profile.trajectory("ssim", win_size=7).shape == (3, 2)


@pytest.mark.parametrize("branch", ["uncond", "cond"])
@pytest.mark.parametrize("layer", [LAYER, ALIAS, f"activations/{ALIAS}"])
def test_distance_along_the_run(layer, branch):
    profile = make_profile()
    values = profile[ACTIVATIONS].values[:, :, ["uncond", "cond"].index(branch)]
    got = profile.trajectory("distance", layer=layer, branch=branch)
    np.testing.assert_allclose(got, distance(values[:-1], values[1:]), rtol=1e-12)
    assert got["step"].values.tolist() == [0, 5]
    assert got.attrs == {"layer": LAYER}


def test_attention_maps_are_compared_by_name():
    one, other = (make_profile(attention_outputs=array(8, 6, dims=IMAGE[1:], seed=seed)) for seed in (0, 3))
    maps, others = one["attention_outputs"].values, other["attention_outputs"].values

    def norm(difference):
        return np.sqrt((difference.astype(float) ** 2).sum((-1, -2)))

    got = one.trajectory("attention_distance")
    np.testing.assert_allclose(got, norm(maps[1:] - maps[:-1]), rtol=1e-6)
    assert got["step"].values.tolist() == one["attention_outputs"]["step"].values.tolist()[:-1]
    np.testing.assert_allclose(one.compare(other, measure="attention_distance"), norm(maps - others), rtol=1e-6)
    with pytest.raises(ValueError, match="no layer= for the measure 'attention_distance' of attention_outputs"):
        one.trajectory("attention_distance", layer=LAYER)


@pytest.mark.parametrize("measure", ["psnr", "mse"])
def test_errors_along_the_run(measure):
    profile = make_profile()
    states = np.stack([*profile["samples"].values, profile["final_sample"].values]).astype(float)
    expected = ((states[1:] - states[:-1]) ** 2).mean((-1, -2, -3))
    expected = expected if measure == "mse" else 10 * np.log10(4 / expected)
    np.testing.assert_allclose(profile.trajectory(measure), expected, rtol=1e-9)


def test_options_reach_the_measure():
    profile = make_profile()
    values = profile[ACTIVATIONS].values[:, :, 1].astype(float)
    low, high = values.min((-1, -2, -3), keepdims=True), values.max((-1, -2, -3), keepdims=True)
    scaled = (values - low) / (high - low)
    got = profile.trajectory("distance", layer=LAYER, normalize="minmax")
    np.testing.assert_allclose(got, distance(scaled[:-1], scaled[1:]), rtol=1e-12)


def test_compare_two_runs():
    one, two = make_profile(), make_profile(seed=10)
    samples, others = one["samples"].values, two["samples"].values
    np.testing.assert_allclose(
        one.compare(two), [ssim(a, b) for a, b in zip(samples, others, strict=True)], rtol=0, atol=1e-10
    )
    activations, others = one[ACTIVATIONS].values[:, :, 1], two[ACTIVATIONS].values[:, :, 1]
    got = one.compare(two, measure="distance", layer=ALIAS)
    np.testing.assert_allclose(got, distance(activations, others), rtol=1e-12)
    assert got.attrs == {"layer": LAYER}


def test_compare_at_the_common_steps_only():
    one = make_profile()
    other = make_profile(samples=array(3, 12, 10, steps=[1, 5, 9, 12], timesteps=[860.0, 500.0, 100.0, 0.0], seed=3))
    for got, first, second in ((one.compare(other), one, other), (other.compare(one), other, one)):
        assert got["step"].values.tolist() == [5, 9]
        assert got["timestep"].values.tolist() == [500, 100]
        expected = [ssim(first["samples"].sel(step=step), second["samples"].sel(step=step)) for step in (5, 9)]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_each_run_has_its_own_aliases():
    one = make_profile()
    other = DiffusionProfile({"activations/b": one[ACTIVATIONS]}, {"layer_aliases": {ALIAS: "b"}})
    assert (one.compare(other, measure="distance", layer=ALIAS) == 0).all()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (array(3, 12, 10, steps=[1, 2, 3]), "a recorded step in common, got steps 0, 5, 9 and 1, 2, 3"),
        (array(3, 12, 10, timesteps=[900.0, 501.0, 100.0]), "got t=500 and t=501 at step 5"),
        (array(3, 12, 12), r"equal shapes at the common steps, got \(2, 3, 12, 10\) and \(2, 3, 12, 12\)"),
        (array(3, 12, 10, samples=1), r"got \(2, 3, 12, 10\) and \(1, 3, 12, 10\)"),
    ],
)
def test_runs_that_cannot_be_compared(samples, message):
    with pytest.raises(ValueError, match=message):
        make_profile().compare(make_profile(samples=samples))


def test_timesteps_agree_up_to_single_precision():
    times = [900.1, 500.2, 100.3]
    one = make_profile(samples=array(3, 12, 10, timesteps=times))
    two = make_profile(samples=array(3, 12, 10, timesteps=np.float32(times).tolist()))
    assert one.compare(two).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"measure": "distance"}, ValueError, f"layer= for the measure 'distance', got none; available: {LAYER}"),
        ({"measure": "ssim", "layer": LAYER}, ValueError, "no layer= for the measure 'ssim' of samples"),
        ({"measure": "lpips"}, KeyError, "a measure, got 'lpips'; available: ssim, ssim_luminance, "),
        ({"measure": "distance", "layer": "mid"}, KeyError, "got 'activations/mid'"),
    ],
)
def test_errors(arguments, error, message):
    arguments = dict(arguments)
    measure = arguments.pop("measure")
    for call in (
        make_profile().trajectory,
        lambda name, **rest: make_profile().compare(make_profile(), measure=name, **rest),
    ):
        with pytest.raises(error) as raised:
            call(measure, **arguments)
        assert message in raised.value.args[0]


def test_nothing_to_compare():
    with pytest.raises(KeyError, match="got 'samples'"):
        make_profile(samples=None).trajectory()
    lonely = make_profile(samples=array(3, 12, 10, steps=[4]), final_sample=None)
    with pytest.raises(ValueError, match="samples: expected at least two recorded states to compare, got 1"):
        lonely.trajectory()
