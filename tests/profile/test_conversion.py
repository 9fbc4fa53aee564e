import numpy as np
import pandas as pd
import pytest

from tests.profile.profiles import ALIAS, LAYER, array, make_profile


OTHER = "mid_block"


def profile_of_several_sizes():
    """Beside the usual arrays: a measure at every step, and a layer with other channels, sizes and steps."""
    curve = array(dims=(), steps=list(range(10)), timesteps=[float(9 - i) for i in range(10)])
    layer = array(6, 3, 2, steps=[5], timesteps=[500.0], branches=("uncond", "cond"), dtype="float16")
    return make_profile(**{"measures/ssim": curve, f"activations/{OTHER}": layer})


def test_a_dataset_holds_every_array_as_it_is():
    profile = profile_of_several_sizes()
    dataset = profile.to_dataset()
    assert list(dataset.data_vars) == list(profile)
    for name, original in profile.items():
        assert dataset[name].dtype == original.dtype
        assert dataset[name].values.tobytes() == original.values.tobytes()
        renamed = {f"{dim} of {name}": dim for dim in original.dims if dim not in dataset[name].dims}
        renamed |= {f"{key} of {name}": key for key in ("timestep",) if f"{key} of {name}" in dataset.coords}
        assert dataset[name].rename(renamed).drop_attrs().identical(original.drop_attrs())
    assert dataset["samples"].dims == ("step", "sample", "channel", "height", "width")
    assert dataset[f"activations/{LAYER}"].dims[:3] == ("step", "sample", "branch")
    assert dataset["measures/ssim"].dims == ("step of measures/ssim", "sample")
    assert dataset["timestep of measures/ssim"].values.tolist() == [float(9 - i) for i in range(10)]
    assert dataset.attrs["seeds"] == [3, 4]


def test_a_tree_has_a_node_for_every_array():
    profile = profile_of_several_sizes()
    tree = profile.to_datatree()
    assert tree.attrs["layer_aliases"] == {ALIAS: LAYER}
    assert {node.path.lstrip("/") for node in tree.leaves} == set(profile)
    for name, original in profile.items():
        assert tree[f"{name}/values"].variable.identical(original.variable)
        assert set(tree[name].coords) == set(original.coords)


def test_a_table_has_a_row_for_each_step_and_sample():
    profile = profile_of_several_sizes()
    table = profile.to_dataframe()
    assert table.index.names == ["step", "sample"]
    assert list(table.columns) == ["timestep", "sigma", "seed", "label", "measures/ssim"]
    assert len(table) == 10 * 2
    row = table.loc[(7, 1)]
    assert row["measures/ssim"] == profile["measures/ssim"].values[7, 1]
    assert (row["timestep"], row["seed"], row["label"]) == (2.0, 4, 12)


def test_scalars_of_other_steps_share_the_table():
    few, many = array(dims=()), array(dims=(), steps=[0, 1], timesteps=[900.0, 800.0])
    table = make_profile(**{"measures/a": few, "measures/b": many}).to_dataframe()
    assert table.index.get_level_values("step").unique().tolist() == [0, 1, 5, 9]
    assert table.loc[(1, 0), "timestep"] == 800
    assert pd.isna(table.loc[(1, 0), "measures/a"])
    assert table.loc[(1, 0), "measures/b"] == many.values[1, 0]


def test_a_profile_without_scalars_has_an_empty_table():
    table = make_profile().to_dataframe()
    assert len(table) == 0
    assert table.index.names == ["step", "sample"]


def test_one_array_as_a_table():
    profile = make_profile()
    table = profile.to_dataframe(f"activations/{ALIAS}")
    assert len(table) == profile[f"activations/{LAYER}"].size
    value = table.loc[(5, 1, "cond", 3, 2, 4)].iloc[-1]
    assert value == profile[f"activations/{LAYER}"].sel(step=5, branch="cond").values[1, 3, 2, 4]
    with pytest.raises(KeyError, match="an array of this profile, got 'activations/nothing'"):
        profile.to_dataframe("activations/nothing")
    assert np.isfinite(table.iloc[:, -1]).all()
