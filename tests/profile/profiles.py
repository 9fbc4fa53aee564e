"""Small profiles of random numbers."""

import numpy as np
import xarray as xr

from diffusers_xai.profile import DiffusionProfile


STEPS = [0, 5, 9]
TIMESTEPS = [900.0, 500.0, 100.0]
LAYER, ALIAS = "down_blocks.0.attn", "downs.0.2.fn"
IMAGE = ("channel", "height", "width")


def array(*shape, dims=IMAGE, steps=STEPS, timesteps=TIMESTEPS, samples=2, branches=(), dtype="float32", seed=0):
    """Random values over (step, sample, [branch,] *dims)."""
    values = np.random.default_rng(seed).normal(
        size=(len(steps), samples, *([len(branches)] if branches else []), *shape)
    )
    coords = {"step": steps, "timestep": ("step", timesteps[: len(steps)])}
    if branches:
        coords["branch"] = list(branches)
    names = ("step", "sample", *(["branch"] if branches else []), *dims)
    return xr.DataArray(values.astype(dtype), dims=names, coords=coords)


def make_profile(seed=0, **arrays):
    """Samples of 12 x 10 pixels and one layer, with guidance; `arrays` replaces or, by None, leaves out."""
    final = np.random.default_rng(seed + 2).normal(size=(2, 3, 12, 10)).astype("float32")
    made = {
        "samples": array(3, 12, 10, seed=seed),
        "final_sample": xr.DataArray(final, dims=("sample", *IMAGE)),
        f"activations/{LAYER}": array(4, 6, 5, branches=("uncond", "cond"), seed=seed + 1),
        **arrays,
    }
    provenance = {"layer_aliases": {ALIAS: LAYER}, "seeds": [3, 4], "class_labels": [1, 12], "num_inference_steps": 10}
    return DiffusionProfile({name: values for name, values in made.items() if values is not None}, provenance)


def assert_bit_identical(one, two):
    """Equal values bit for bit, and equal dtypes, dims, coordinates and attributes."""
    assert list(one) == list(two)
    for name in one:
        a, b = one[name], two[name]
        assert a.name == b.name == name
        assert a.dims == b.dims
        assert a.dtype == b.dtype
        assert a.values.tobytes() == b.values.tobytes()
        assert a.attrs == b.attrs
        assert list(a.coords) == list(b.coords)
        for key in a.coords:
            assert a[key].dims == b[key].dims
            assert a[key].dtype == b[key].dtype
            assert a[key].values.tobytes() == b[key].values.tobytes()
            assert a[key].attrs == b[key].attrs
