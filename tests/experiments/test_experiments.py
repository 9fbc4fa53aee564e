"""Experiments that keep what a run gives, and all of them on a network of diffusers."""

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr
from diffusers import DDPMScheduler

from diffusers_xai import Activations, XAIPipeline
from diffusers_xai.experiments import EXPERIMENTS
from diffusers_xai.experiments.figures import band
from diffusers_xai.experiments.page import write_experiments
from tests.experiments.runs import SEEDS, measured, run, ssim, states
from tests.tiny import unet_2d


def test_ssim_trajectory(pipe):
    result = run("ssim-trajectory", pipe, labels=[3], seeds=SEEDS, steps=6, batch_size=2)
    assert result.data["ssim"].dims == ("seed", "step")
    for seed in SEEDS:
        run_states = states(pipe, 3, seed, 6)
        expected = [ssim(a, b) for a, b in zip(run_states, run_states[1:], strict=False)]
        np.testing.assert_allclose(result.data["ssim"].sel(seed=seed), expected, atol=1e-4)
    table = EXPERIMENTS["ssim-trajectory"].table(result)
    assert table["t"].tolist() == [f"{t:.0f}" for t in pipe.scheduler.timesteps]
    for column, name in (("the model", "ssim"), ("control", "null_ssim")):
        means = result.data[name].mean("seed").values
        assert [text.split(" (")[0] for text in table[column]] == [f"{mean:.3f}" for mean in means]


def test_tables_say_what_few_seeds_are_worth(pipe, tmp_path):
    for count, words in ((1, "One seed: no intervals."), (3, "3 seeds: too few for a sure interval."), (8, None)):
        result = measured("ssim-trajectory", pipe, labels=[3], seeds=range(count), steps=2)
        write_experiments([result], tmp_path / "page.html", "")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert words in page if words else "for a sure interval" not in page
        assert result.plot().layout.title.text == words  # and so does a figure that stands alone
        assert "nan" not in EXPERIMENTS["ssim-trajectory"].table(result).to_string()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_what_is_drawn_around_many_curves_is_told_once(count):
    values = xr.DataArray(np.arange(3.0 * count).reshape(count, 3) ** 2, dims=("seed", "step"))
    figure = go.Figure()
    for index in range(8):
        band(figure, np.arange(3), values + index, f"layer {index}", index)
    band(figure, np.arange(3), values - 1, "control", muted=True)
    told = [trace.name for trace in figure.data if trace.showlegend is not False]
    about = [name for name in told if not name.startswith(("layer", "control"))]
    filled = [trace.y for trace in figure.data if trace.fill == "tonexty"]
    thin = [trace.y for trace in figure.data if trace.line.width == 1 and trace.showlegend is False]
    if count == 8:  # a band of one deviation and one of the interval; of the control, the latter alone
        assert about == ["mean of 8 seeds;<br>dark: its 95 % interval;<br>light: one standard deviation"]
        assert (len(filled), thin) == (2 * 8 + 1, [])
        np.testing.assert_allclose(filled[0], values.mean("seed") - values.std("seed", ddof=1))
    elif count > 1:  # each seed as it is
        assert about == ["thin: each of 2 seeds"]
        expected = [seed + offset for offset in (*range(8), -1) for seed in values.values]
        np.testing.assert_array_equal(thin, expected)
    else:
        assert (about, filled, thin) == ([], [], [])


def test_process_and_layer_types(pipe):
    result = run("process", pipe, labels=[3], seeds=SEEDS, steps=10)
    run_states = states(pipe, 3, 9, 10)
    np.testing.assert_allclose(result.data["samples"].sel(shown=9), torch.stack(run_states[:-1]), atol=1e-3)
    for name, shown in (("ssim", run_states[:-1]), ("null_ssim", result.data["null_samples"].sel(shown=9).values)):
        expected = [ssim(state, run_states[-1]) for state in shown]
        np.testing.assert_allclose(result.data[name].sel(seed=9), expected, atol=1e-3)
    result = run("layer-types", pipe, labels=[3], seeds=SEEDS, steps=5)
    names = {"downs.0.0", "downs.0.0.ds_conv", "downs.0.1", "downs.0.2.fn", "downs.0.2"}
    assert set(result.data["layer"].values) == names
    recorded = pipe(
        3, num_inference_steps=5, generator=torch.Generator().manual_seed(9), record=[Activations(layers="downs.0.1")]
    ).profile  # fmt: skip
    channel = recorded.max_channel("downs.0.1", timestep=200)
    part = result.data.sel(seed=9, shown=9, layer="downs.0.1")
    assert int(part["channel"]) == channel
    values = recorded.sel("activations/downs.0.1", timestep=200)[0, channel]
    np.testing.assert_allclose(part["map"], values, rtol=1e-3, atol=1e-4)
    grey = part["final"].mean("rgb").values.ravel()  # of the map's own size
    for name in ("", "null_"):
        expected = abs(np.corrcoef(part[f"{name}map"].values.ravel(), grey)[0, 1])
        assert float(part[f"{name}likeness"]) == pytest.approx(expected, abs=1e-3)


def test_networks_of_diffusers_without_labels():
    pipe = XAIPipeline(unet_2d(), DDPMScheduler())
    for name, experiment in EXPERIMENTS.items():
        if experiment.labels == 1 and experiment.needs is None:
            result = run(name, pipe, seeds=[1, 2, 3], steps=5)
            assert result.settings["seeds"] == [1, 2, 3]
            assert [key for key, values in result.data.items() if not np.isfinite(values).any()] == []
