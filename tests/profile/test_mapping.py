import numpy as np
import pytest
import torch
import xarray as xr

from diffusers_xai.profile import DIMS, DiffusionProfile
from tests.profile.profiles import ALIAS, LAYER, array, make_profile


def one(values, name="samples"):
    return DiffusionProfile({name: values}, {})


def test_is_a_read_only_mapping():
    profile = make_profile()
    names = ["samples", "final_sample", f"activations/{LAYER}"]
    assert list(profile) == list(profile.keys()) == names
    assert len(profile) == 3
    assert [name for name, _ in profile.items()] == names
    assert profile.get("x0") is None
    assert "x0" not in profile
    assert 3 not in profile
    with pytest.raises(TypeError):
        profile["x0"] = profile["samples"]
    assert profile == profile  # noqa: PLR0124
    assert profile != make_profile()
    assert len({profile, profile}) == 1


def test_layers_are_found_by_path_and_alias():
    profile = make_profile()
    assert profile[f"activations/{ALIAS}"] is profile[f"activations/{LAYER}"]
    assert f"activations/{ALIAS}" in profile
    assert ALIAS not in profile
    assert f"gradient_maps/{ALIAS}" not in profile


def test_a_path_goes_before_an_equal_alias():
    arrays = {"activations/a": array(1, 2, 2), "activations/b": array(1, 2, 2, seed=1)}
    profile = DiffusionProfile(arrays, {"layer_aliases": {"a": "b"}})
    assert profile["activations/a"].identical(arrays["activations/a"].rename("activations/a"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("sample", "samples"), (f"activations/{LAYER[:-1]}", f"activations/{LAYER}"), (ALIAS, f"activations/{ALIAS}")],
)
def test_unknown_name_lists_the_nearest(name, nearest):
    with pytest.raises(KeyError) as error:
        make_profile()[name]
    assert repr(name) in error.value.args[0]
    assert nearest in error.value.args[0].split("nearest: ")[1].removesuffix(".").split(", ")


def test_unknown_name_without_a_near_one_lists_all():
    with pytest.raises(KeyError, match=f"available: samples, final_sample, activations/{LAYER}"):
        make_profile()["zzz"]


def test_the_given_arrays_stay_as_they_are():
    given = array(3, 8, 8).assign_attrs(size=(1, np.float32(2)))
    given["timestep"].attrs["range"] = (0, 1000)
    profile = one(given)
    assert given.name is None
    assert given.attrs == {"size": (1, np.float32(2))}
    assert given["timestep"].attrs == {"range": (0, 1000)}
    assert profile["samples"].name == "samples"
    assert profile["samples"].attrs == {"size": [1, 2.0]}
    assert profile["samples"]["timestep"].attrs == {"range": [0, 1000]}
    assert np.shares_memory(profile["samples"].values, given.values)


def test_provenance_is_a_json_copy():
    given = {"seeds": (np.int64(3), None), "config": {1: np.float32(0.5), "betas": [1e-4, float("inf")]}}
    profile = DiffusionProfile({}, given)
    assert profile.provenance == {"seeds": [3, None], "config": {"1": 0.5, "betas": [1e-4, float("inf")]}}
    given["config"]["betas"].append(3)
    assert len(profile.provenance["config"]["betas"]) == 2


def test_provenance_without_json_form():
    with pytest.raises(TypeError, match=r"provenance\['record'\]\[0\]\['mask'\]: .* got Tensor"):
        DiffusionProfile({}, {"record": [{"mask": torch.ones(2)}]})
    with pytest.raises(ValueError, match="layer_aliases"):
        DiffusionProfile({}, {"layer_aliases": ["a"]})


@pytest.mark.parametrize("name", ["", "/samples", "activations/", "activations//x", "a/../b", "..", "a/./b", 3])
def test_bad_names(name):
    with pytest.raises(ValueError, match="Expected an array name such as 'samples'"):
        one(array(3, 8, 8), name)


@pytest.mark.parametrize(
    "dims",
    [
        ("step", "sample", "channel", "width", "height"),
        ("sample", "step", "channel", "height", "width"),
        ("step", "batch", "channel", "height", "width"),
        ("time", "sample", "channel", "height", "width"),
    ],
)
def test_dims_come_from_the_vocabulary_in_its_order(dims):
    values = xr.DataArray(np.zeros((2, 2, 3, 4, 4)), dims=dims, coords={"step": [0, 1]} if "step" in dims else {})
    with pytest.raises(ValueError, match=r"expected dims from \('step', 'sample', 'branch', .*got \("):
        one(values)


def test_every_dim_of_the_vocabulary_is_accepted():
    coords = {"step": [0], "branch": ["cond"]}
    assert one(xr.DataArray(np.zeros((1,) * len(DIMS)), dims=DIMS, coords=coords))["samples"].dims == DIMS


@pytest.mark.parametrize("dtype", ["complex64", ">f4", "O", "U3", "M8[ns]", "float128"])
def test_dtypes_that_no_profile_holds(dtype):
    if dtype == "float128" and not hasattr(np, "float128"):
        pytest.skip("no such type on this machine")
    with pytest.raises(ValueError, match=r"samples: expected one of the dtypes bool, int8, .*, got "):
        one(xr.DataArray(np.zeros((2, 2), dtype=dtype), dims=("sample", "channel")))


def test_no_plain_arrays_and_no_empty_ones():
    with pytest.raises(TypeError, match=r"samples: expected an xarray.DataArray, got ndarray"):
        one(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"samples: expected at least one value, got shape \(0, 2\)"):
        one(xr.DataArray(np.zeros((0, 2)), dims=("sample", "channel")))
    with pytest.raises(ValueError, match=r"samples: expected dims .* got \(\)"):
        one(xr.DataArray(1.0))


@pytest.mark.parametrize(
    ("steps", "got"),
    [
        (None, "none"),
        ([0.0, 1.0], "float64 0, 1"),
        ([1, 1], "int64 1, 1"),
        ([2, 1], "int64 2, 1"),
        ([-1, 0], "int64 -1, 0"),
    ],
)
def test_steps_are_increasing_indices(steps, got):
    values = xr.DataArray(np.zeros((2, 1)), dims=("step", "sample"), coords={} if steps is None else {"step": steps})
    with pytest.raises(ValueError, match=f"increasing integer coordinates 'step' from 0 on, got {got}"):
        one(values)


@pytest.mark.parametrize("clock", ["timestep", "sigma"])
@pytest.mark.parametrize("coord", [("step", [3, 2]), ("sample", [1.0]), ((), 1.0)])
def test_timesteps_and_sigmas_are_floats_on_step(clock, coord):
    values = xr.DataArray(np.zeros((2, 1)), dims=("step", "sample"), coords={"step": [0, 1], clock: coord})
    with pytest.raises(ValueError, match=rf"expected '{clock}' to be a float coordinate on \('step',\), got "):
        one(values)


@pytest.mark.parametrize("branches", [None, ["cond", "cond"], ["cond", "other"], [0, 1]])
def test_branches_are_named(branches):
    coords = {} if branches is None else {"branch": branches}
    with pytest.raises(ValueError, match=r"expected coordinates 'branch' from \('uncond', 'cond', .*got "):
        one(xr.DataArray(np.zeros((1, 2)), dims=("sample", "branch"), coords=coords))


def test_coordinates_hold_text_or_numbers():
    with pytest.raises(ValueError, match="coordinate 'token': expected text or numbers"):
        one(xr.DataArray(np.zeros(2), dims="token", coords={"token": np.array(["a", None], dtype=object)}))
    tokens = np.array(["a", "fox"], dtype=object)
    assert one(xr.DataArray(np.zeros(2), dims="token", coords={"token": tokens}))["samples"]["token"].dtype == "<U3"
