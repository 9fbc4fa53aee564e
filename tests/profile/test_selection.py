import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from PIL import Image

from diffusers_xai.profile import DiffusionProfile
from tests.profile.profiles import ALIAS, LAYER, STEPS, array, make_profile


ACTIVATIONS = f"activations/{LAYER}"


@pytest.mark.parametrize(("step", "position"), [(0, 0), (5, 1), (np.int64(9), 2)])
def test_sel_by_step(step, position):
    profile = make_profile()
    got = profile.sel("samples", step=step)
    assert got.dims == ("sample", "channel", "height", "width")
    assert (int(got["step"]), float(got["timestep"])) == (STEPS[position], [900, 500, 100][position])
    np.testing.assert_array_equal(got, profile["samples"].values[position])


@pytest.mark.parametrize(("timestep", "position"), [(900, 0), (5000, 0), (701, 0), (699, 1), (0, 2), (-3.5, 2)])
def test_sel_by_the_nearest_timestep(timestep, position):
    profile = make_profile()
    got = profile.sel(f"activations/{ALIAS}", timestep=timestep)
    np.testing.assert_array_equal(got, profile[ACTIVATIONS].values[position])


def test_the_first_of_repeated_timesteps():
    heun = array(3, 8, 8, steps=[0, 1, 2], timesteps=[999.0, 500.0, 500.0])
    assert int(DiffusionProfile({"samples": heun}).sel("samples", timestep=490)["step"]) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"step": 4}, KeyError, "samples: expected a recorded step, got 4; available: 0, 5, 9"),
        ({"step": -1}, KeyError, "a recorded step, got -1"),
        ({"timestep": float("nan")}, ValueError, "finite timestep, got nan; available: 900, 500, 100"),
        ({}, ValueError, "either step= or timestep=, got step=None and timestep=None"),
        ({"step": 0, "timestep": 0}, ValueError, "either step= or timestep=, got step=0 and timestep=0"),
    ],
)
def test_sel_errors(options, error, message):
    with pytest.raises(error) as raised:
        make_profile().sel("samples", **options)
    assert message in raised.value.args[0]


def test_sel_needs_steps_and_timesteps():
    profile = make_profile(samples=array(3, 8, 8).drop_vars("timestep"))
    with pytest.raises(ValueError, match="final_sample: expected an array with steps"):
        profile.sel("final_sample", step=0)
    with pytest.raises(ValueError, match="samples: expected an array with timesteps, got none. Choose by step="):
        profile.sel("samples", timestep=0)


def test_many_steps_are_shortened_in_the_error():
    steps = list(range(0, 2000, 2))
    profile = DiffusionProfile({"measures/ssim": array(steps=steps, timesteps=np.zeros(1000), dims=())})
    with pytest.raises(KeyError, match=r"available: 0, 2, 4, 6, 8, 10, … \(988 more\), 1988, "):
        profile.sel("measures/ssim", step=1)


@pytest.mark.parametrize("layer", [LAYER, ALIAS, ACTIVATIONS, f"activations/{ALIAS}"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("branch", ["uncond", "cond"])
@pytest.mark.parametrize("sample", [0, 1])
def test_max_channel(layer, absolute, branch, sample):
    profile = make_profile()
    values = profile[ACTIVATIONS].values[1, sample, ["uncond", "cond"].index(branch)].astype(float)
    expected = (np.abs(values) if absolute else values).sum((1, 2)).argmax()
    options = {"absolute": absolute, "branch": branch, "sample": sample}
    by_step = profile.max_channel(layer, step=5, **options)
    assert type(by_step) is int
    assert by_step == profile.max_channel(layer, timestep=480, **options) == expected


@pytest.mark.parametrize("as_mask", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_max_channel_in_a_mask(as_mask):
    profile = make_profile()
    mask = np.zeros((12, 10), dtype=bool)
    mask[2:6, 3:8] = True
    small = F.interpolate(torch.from_numpy(mask)[None, None].double(), size=(6, 5), mode="bilinear")[0, 0].numpy()
    expected = (profile[ACTIVATIONS].values[:, :, 1] * small).sum((-1, -2)).argmax(-1)
    assert profile.max_channel(LAYER, step=0, mask=as_mask(mask)) == expected[0, 0]
    np.testing.assert_array_equal(profile.max_channels(LAYER, mask=as_mask(mask)), expected)


def test_top_channels_are_those_with_the_largest_sums(tmp_path):
    profile = make_profile()
    values = profile[ACTIVATIONS].values[2, 1, 0].astype(float)
    order = np.argsort(-values.sum((1, 2))).tolist()
    options = {"step": 9, "sample": 1, "branch": "uncond"}
    assert profile.top_channels(ALIAS, 3, **options) == order[:3]
    assert profile.top_channels(LAYER, len(values), **options) == order
    assert profile.top_channels(LAYER, 1, **options) == [profile.max_channel(LAYER, **options)]

    mask = np.zeros((12, 10), dtype=bool)
    mask[2:6, 3:8] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    small = F.interpolate(torch.from_numpy(mask)[None, None].double(), size=(6, 5), mode="bilinear")[0, 0].numpy()
    order = np.argsort(-np.abs(values * small).sum((1, 2))).tolist()
    for given in (mask, tmp_path / "mask.png"):
        assert profile.top_channels(LAYER, 2, mask=given, absolute=True, **options) == order[:2]
    with pytest.raises(ValueError, match=rf"k in 1\.\.{len(values)}, the number of channels, got 99"):
        profile.top_channels(LAYER, 99, step=0)


def test_max_channels_of_every_step_and_sample():
    profile = make_profile()
    got = profile.max_channels(ALIAS)
    assert got.dims == ("step", "sample")
    assert got.dtype == np.int64
    assert got.attrs == {"layer": LAYER}
    assert got["step"].values.tolist() == STEPS
    assert got["timestep"].values.tolist() == [900, 500, 100]
    np.testing.assert_array_equal(got, profile[ACTIVATIONS].values[:, :, 1].astype(float).sum((-1, -2)).argmax(-1))
    for step in STEPS:
        for sample in (0, 1):
            assert got.sel(step=step)[sample] == profile.max_channel(LAYER, step=step, sample=sample)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_max_channels_of_other_dtypes_without_guidance(dtype):
    values = array(4, 6, 5) * 10
    profile = make_profile(**{ACTIVATIONS: values.astype(dtype)})
    expected = values.values.astype(dtype).astype(float).sum((-1, -2)).argmax(-1)
    np.testing.assert_array_equal(profile.max_channels(LAYER), expected)


def test_other_arrays_with_channels():
    maps = array(4, 6, 5, seed=7)
    profile = make_profile(**{f"gradient_maps/{LAYER}": maps})
    expected = maps.values[0, 0].astype(float).sum((-1, -2)).argmax()
    assert profile.max_channel(f"gradient_maps/{ALIAS}", step=0) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample": 2}, ValueError, "expected sample to be in 0..1, got 2"),
        ({"sample": -1}, ValueError, "expected sample to be in 0..1, got -1"),
        ({"branch": "both"}, ValueError, "expected branch to be one of ['uncond', 'cond'], got 'both'"),
        ({"mask": np.ones((6, 5), bool)}, ValueError, "(height, width) = (12, 10), got (6, 5)"),
        ({"mask": np.zeros((12, 10), bool)}, ValueError, "at least one True pixel"),
        ({"mask": np.ones((12, 10))}, ValueError, "dtype bool"),
        ({"layer": "downs.0.2.fm"}, KeyError, f"nearest: activations/{ALIAS}"),
        ({"layer": "samples/"}, KeyError, "got 'samples/'"),
        ({"step": 1}, KeyError, "a recorded step, got 1"),
    ],
)
def test_max_channel_errors(options, error, message):
    with pytest.raises(error) as raised:
        make_profile().max_channel(**{"layer": LAYER, "step": 0, **options})
    assert message in raised.value.args[0]


def test_a_run_without_guidance_has_the_cond_branch_only():
    profile = make_profile(**{ACTIVATIONS: array(4, 6, 5)})
    with pytest.raises(ValueError, match=r"one of \['cond'\], got 'uncond'"):
        profile.max_channel(LAYER, step=0, branch="uncond")


def test_a_mask_of_any_size_where_no_image_is_recorded():
    profile = make_profile(samples=None, final_sample=None)
    assert profile.max_channel(LAYER, step=0, mask=np.ones((24, 20), bool)) == profile.max_channel(LAYER, step=0)


def test_max_channel_needs_image_like_activations():
    tokens = xr.DataArray(np.zeros((1, 1, 4, 2)), dims=("step", "sample", "channel", "token"), coords={"step": [0]})
    with pytest.raises(ValueError, match="expected dims step, sample, channel, height, width, got "):
        make_profile(**{ACTIVATIONS: tokens}).max_channel(LAYER, step=0)


def test_read_only_values_do_not_warn(recwarn):
    values = array(4, 6, 5)
    values.values.flags.writeable = False
    make_profile(**{ACTIVATIONS: values}).max_channels(LAYER)
    assert not recwarn.list
