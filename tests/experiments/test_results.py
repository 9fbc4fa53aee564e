"""Results on disk, seeds in batches and in processes, the registry."""

import re

import numpy as np
import pytest
import xarray as xr

from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling


def make_result(value=1.0):
    data = xr.Dataset(
        {
            "ssim": (("seed", "layer"), np.full((2, 3), value)),
            "images": (("seed", "rgb", "height", "width"), np.ones((2, 3, 4, 4))),
        },
        {"seed": [3, 7], "layer": ["a", "b", "c"], "kind": ("layer", ["x", "y", "y"])},
    )
    return ExperimentResult("ablation", data, {"labels": [3], "versions": {}})


def test_a_result_comes_back_from_disk(tmp_path):
    result = make_result()
    result.save(tmp_path / "r")
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "profile.json",
        "ssim.safetensors",
        "images.safetensors",
    }
    loaded = ExperimentResult.load(tmp_path / "r")
    assert (loaded.name, loaded.settings) == (result.name, result.settings)
    xr.testing.assert_equal(loaded.data, result.data)
    assert set(loaded.data.coords) == {"seed", "layer", "kind"}


def test_saving_never_loses_what_is_there(tmp_path):
    make_result().save(tmp_path / "r")
    with pytest.raises(FileExistsError):
        make_result(2.0).save(tmp_path / "r")
    make_result(2.0).save(tmp_path / "r", overwrite=True)
    assert float(ExperimentResult.load(tmp_path / "r").data["ssim"][0, 0]) == 2.0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError):
        make_result().save(tmp_path / "mine", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_damaged_results_are_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="profile.json"):
        ExperimentResult.load(tmp_path)
    make_result().save(tmp_path / "r")
    arrays = tmp_path / "r" / "ssim.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        ExperimentResult.load(tmp_path / "r")


def test_the_table_is_tidy():
    table = make_result().to_dataframe()
    assert len(table) == 6
    assert {"seed", "layer", "kind", "ssim", "images"} <= set(table.columns)
    assert set(table["images"]) == {1.0}  # the mean of the pictures


def test_batches_are_joined_in_the_order_of_the_seeds():
    batches = []

    def measure(part):
        batches.append(part)
        return xr.Dataset({"x": ("seed", np.array(part) * 2.0), "shared": ("step", [1, 2])})

    data = Sampling(seeds=[5, 1, 9, 3, 2], batch_size=2).over_seeds(measure, "x")
    assert batches == [[5, 1], [9, 3], [2]]
    assert data["x"].sel(seed=9) == 18
    assert data["seed"].values.tolist() == [5, 1, 9, 3, 2]
    assert data["shared"].dims == ("step",)
    batches.clear()
    assert Sampling(seeds=range(7), batch_size=3).over_seeds(measure, "x", at_least=2)["x"][6] == 12
    assert batches == [[0, 1, 2], [3, 4, 5, 6]]
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="each once"):
            Sampling(seeds=seeds)


def test_every_experiment_says_what_it_is():
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert experiment.text.endswith(".")
        assert re.search(r"thesis|\b(19|20)\d\d\b", experiment.source)
