"""Seeds that are kept on disk: the same numbers as without, nothing measured twice, shards that add up."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from diffusers import DDPMScheduler
from filelock import FileLock
from scipy import stats

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS, Sampling, moments_over_seeds
from diffusers_xai.experiments.parts import MemoryParts, kept_parts
from diffusers_xai.experiments.sampling import _LIMITS, MAX_HELD
from diffusers_xai.models import GaussianDenoiser


@pytest.fixture(scope="module")
def pipe():
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scheduler = DDPMScheduler()
    return XAIPipeline(GaussianDenoiser.fit(images, scheduler, rank=8), scheduler)


def test_parts_hold_all_that_was_measured(tmp_path, monkeypatch):
    """Every kind of variable there is, and dims in any order."""
    monkeypatch.setitem(_LIMITS, "held", 4)
    batches = []

    def measure(part):
        batches.append(part)
        number = np.array(part)
        table = number + 100 * np.arange(6).reshape(2, 3, 1)
        return xr.Dataset(
            {
                "number": ("seed", number),
                "table": (("layer", "step", "seed"), table.astype(np.float32)),
                "high": ("seed", number > 2),
                "shared": ("step", [np.nan, 1.0, 2.0]),
                "picture": (("seed", "width"), np.stack([number, -number], 1)),
                "pictures": (("width", "seed"), np.stack([number, -number])),
                "arrays": (("seed", "width"), np.stack([number, -number], 1)),
            },
            {"layer": ["a", "b"], "kind": ("layer", [1, 2]), "timestep": ("step", np.float32([0.1, 0.2, 0.3]))},
        )

    sampling = Sampling(labels=[3], seeds=[4, 1, 9, 7, 2], batch_size=2)
    settings = {"of_first": ["picture", "none"], "of_few": ["pictures"], "of_held": ["arrays"]}
    plain = sampling.over_seeds(measure, "x", **settings)
    assert plain["table"].dims == ("layer", "step", "seed")
    assert plain["picture"].values.tolist() == [4, -4]
    assert plain["pictures"].sel(shown=9).values.tolist() == [9, -9]
    assert plain.sizes["shown"] == 3
    assert plain["arrays"].isel(width=0).values.tolist() == [4, 1, 9, 7]
    batches.clear()
    for _ in range(2):  # the second time, nothing is measured
        with kept_parts(tmp_path / "x", {"a": 1}):
            first = sampling.over_seeds(measure, "x", **settings)
            other = sampling.over_seeds(lambda part: measure(part)[["number"]] + 1, "y")
        xr.testing.assert_identical(first, plain)
        assert other["number"].values.tolist() == [5, 2, 10, 8, 3]
    assert batches == 2 * [[4, 1], [9, 7], [2]]
    (tmp_path / "x" / "part-00001.parquet").unlink()
    with kept_parts(tmp_path / "x", {"a": 1}):
        xr.testing.assert_identical(sampling.over_seeds(measure, "x", **settings), plain)
    assert batches[6:] == [[9, 7]]

    rows = pd.read_parquet(sorted((tmp_path / "x").glob("part-*"))[:3])
    assert rows["seed"].tolist() == rows["number"].tolist() == [4, 1, 9, 7, 2]
    assert [len(picture) for picture in rows["picture"].dropna()] == [2, 0]  # and no column in later files
    np.testing.assert_array_equal(np.stack(rows["table"])[:, 3], rows["seed"] + 300)


def buffers(data):
    """Bytes of what arrays keep alive, which may be more than they show: by each buffer's place."""
    found = {}
    for array in data.data_vars.values():
        values = array.values
        while isinstance(values.base, np.ndarray):
            values = values.base
        owner = values if values.base is None else values.base.untyped_storage()  # of a tensor
        found[values.ctypes.data] = owner.nbytes if values.base is None else owner.nbytes()
    return found


def test_what_is_held_grows_by_the_numbers_alone(monkeypatch):
    """However many seeds there are: after those whose arrays are kept, a seed leaves its five numbers."""
    held = []

    def measure(part):
        arrays = torch.ones(len(part), 40, 40)
        dims = ("seed", "height", "width")
        return xr.Dataset(
            {name: (dims, arrays.clone().numpy()) for name in ("first", "few", "some")}
            | {"number": (("seed", "step"), np.ones((len(part), 5)))}
        )

    def kept_in_memory(batches, labels, description):
        held.append(MemoryParts(batches))
        return held[-1]

    monkeypatch.setattr("diffusers_xai.experiments.sampling.parts_of", kept_in_memory)
    for count in (MAX_HELD + 10, MAX_HELD + 90):
        Sampling(seeds=range(count), batch_size=10).over_seeds(
            measure, "x", of_first=["first"], of_few=["few"], of_held=["some"]
        )
    fewer, more = (sum(sum(buffers(data).values()) for _, data in parts.kept) for parts in held)
    assert fewer > MAX_HELD * 40 * 40 * 4
    assert more - fewer == 80 * 5 * 8


def test_where_no_batch_was_finished_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), kept_parts(tmp_path / "experiments" / "x.parquet", {"steps": 2}):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_parts_of_something_else_are_refused(tmp_path):
    sampling = Sampling(seeds=range(3), batch_size=2)

    def over_seeds(folder="x", seeds=sampling, **request):
        with kept_parts(tmp_path / folder, request):
            return seeds.over_seeds(lambda part: xr.Dataset({"number": ("seed", part)}), "x")

    over_seeds(steps=2)
    with pytest.raises(ValueError, match="x: expected steps 3, got 2, more 1, got null"):
        over_seeds(steps=3, more=1)
    with pytest.raises(ValueError, match=r"expected seeds \[5, 6\], got \[0, 1\]"):
        over_seeds(seeds=Sampling(seeds=[5, 6, 7], batch_size=2), steps=2)
    (tmp_path / "x" / "part-00001.parquet").write_bytes((tmp_path / "x" / "part-00001.parquet").read_bytes()[:99])
    with pytest.raises(ValueError, match="part-00001.parquet is damaged: remove it"):
        over_seeds(steps=2)
    with FileLock(tmp_path / "x" / ".lock"), pytest.raises(BlockingIOError, match="written by another process"):
        over_seeds(steps=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    with pytest.raises(ValueError, match="expected a folder of an experiment's seeds"):
        over_seeds("mine")
    with pytest.raises(FileNotFoundError, match="expected parts"):
        moments_over_seeds(tmp_path / "mine")


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_give_the_moments_of_one_pass(pipe, tmp_path, shards):
    """Of a model whose answer is known in closed form."""
    one = EXPERIMENTS["ssim-trajectory"].run(pipe, Sampling(seeds=range(12), steps=4, batch_size=12))
    sampling = Sampling(seeds=range(12), steps=4, batch_size=12 // shards)
    result = EXPERIMENTS["ssim-trajectory"].run(pipe, sampling, parts=tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("part-*.parquet"))) == shards
    xr.testing.assert_allclose(result.data, one.data, atol=1e-6)
    table = moments_over_seeds(tmp_path / "parts").set_index(["variable", "step"])
    for name in ("ssim", "null_ssim"):
        values, rows = pd.DataFrame(one.data[name].values), table.loc[name]
        assert rows["count"].tolist() == [12] * 4
        np.testing.assert_allclose(rows["mean"], values.mean(), atol=1e-6)
        np.testing.assert_allclose(rows["std"], values.std(), atol=1e-6)
        np.testing.assert_allclose(np.stack(rows["covariance"]), values.cov(), atol=1e-6)
        low, high = stats.t.interval(0.95, 11, values.mean(), values.sem())
        np.testing.assert_allclose(rows[["low", "high"]], np.stack([low, high], 1), atol=1e-6)
    assert rows["timestep"].tolist() == one.data["timestep"].values.tolist()


def test_more_numbers_than_covariances(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_xai.experiments.seed_moments.MAX_COVARIANCES", 20)
    values = np.random.default_rng(0).normal(size=(6, 7, 5))
    with kept_parts(tmp_path, {}):
        Sampling(seeds=range(6), batch_size=4).over_seeds(
            lambda part: xr.Dataset({"x": (("seed", "layer", "step"), values[part])}), "x"
        )
    table = moments_over_seeds(tmp_path)
    np.testing.assert_allclose(table["std"], values.std(0, ddof=1).ravel())
    np.testing.assert_array_equal(table[["layer", "step"]], np.indices((7, 5)).reshape(2, -1).T)
    assert table["covariance"].isna().all()


def test_layers_have_names_in_some_numbers_and_places_in_others(tmp_path):
    def measure(part, coords):
        return xr.Dataset({"x": (("seed", "layer"), np.ones((len(part), 2)))}, coords)

    sampling = Sampling(seeds=[0, 1])
    with kept_parts(tmp_path / "parts", {}):
        sampling.over_seeds(lambda part: measure(part, {"layer": ["mid", "up"]}), "by name")
        sampling.over_seeds(lambda part: measure(part, {}), "by place")
    moments_over_seeds(tmp_path / "parts").to_parquet(tmp_path / "moments.parquet")
    assert pd.read_parquet(tmp_path / "moments.parquet")["layer"].tolist() == ["mid", "up", "0", "1"]


def test_another_model_is_another_request(pipe, tmp_path):
    sampling = Sampling(seeds=range(2), steps=2)
    experiment = EXPERIMENTS["ssim-trajectory"]
    experiment.run(pipe, sampling, parts=tmp_path)
    assert json.loads((tmp_path / "_request.json").read_text())["null"] == "forward-noising"
    other = XAIPipeline(GaussianDenoiser.fit(torch.rand(40, 3, 8, 8), pipe.scheduler, rank=8), pipe.scheduler)
    with pytest.raises(ValueError, match='expected model "'):
        experiment.run(other, sampling, parts=tmp_path)
