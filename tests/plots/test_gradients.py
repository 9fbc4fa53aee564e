import numpy as np
import plotly.graph_objects as go
import pytest

from diffusers_xai.plots import gradient_energy, gradient_maps, gradient_volume, label_sensitivity
from tests.plots.profiles import ATTENTION, CONV, PIXELS, make_profile, with_gradients, without


def maps_of(figure: go.Figure) -> list[go.Heatmap]:
    return [trace for trace in figure.data if isinstance(trace, go.Heatmap)]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("max_points", [10_000, 25])
def test_points_of_the_volume_are_its_values_above_the_mean(guided, max_points):
    profile = with_gradients(make_profile(samples=2, guided=guided))
    stored = profile["gradient_volume"].values[:, 1, 1] if guided else profile["gradient_volume"].values[:, 1]
    figure = gradient_volume(profile, sample=1, max_points=max_points)
    assert len(figure.data) == len(stored)
    for trace, volume, title in zip(figure.data, stored, figure.layout.annotations, strict=True):
        above = {
            (k, i, j): volume[k, i, j]
            for k, i, j in np.ndindex(volume.shape)
            if volume[k, i, j] > volume.astype(np.float64).mean()
        }
        drawn = list(zip(trace.y, trace.z, trace.x, strict=True))
        assert len(drawn) == len(set(drawn)) == min(len(above), max_points)
        for place, (value, row, column) in zip(drawn, trace.customdata, strict=True):
            assert value == pytest.approx(above[place])
            assert (row, column) == PIXELS[place[0]]
        left_out = sorted(above.values())[: len(above) - len(drawn)]
        assert all(value <= min(v for v, _, _ in trace.customdata) for value in left_out)
        assert f"{len(above):,} of {volume.size:,}" in title.text
        assert (f"greatest {max_points}" in title.text) == (len(above) > max_points)


def test_scenes_stand_side_by_side_at_the_chosen_times():
    figure = gradient_volume(with_gradients(make_profile()), timesteps=[90, 940])
    assert ["t = 83.33" in figure.layout.annotations[0].text, "t = 916.7" in figure.layout.annotations[1].text]
    assert figure.layout.scene.domain.x[1] <= figure.layout.scene2.domain.x[0]
    assert figure.layout.scene.zaxis.range[0] > figure.layout.scene.zaxis.range[1]  # rows run down


@pytest.mark.parametrize("separate", [False, True])
def test_energy_of_a_volume(separate):
    profile = without(with_gradients(make_profile(), separate=separate), "gradient_energy", "gradient_energy_error")
    volume = profile["gradient_volume"].values[:, 0].astype(np.float64)
    energy = np.sqrt(((volume.sum(axis=2) if separate else volume) ** 2).sum(axis=1))
    maps = maps_of(gradient_energy(profile))
    assert len(maps) == len(energy)
    for trace, expected in zip(maps, energy, strict=True):
        np.testing.assert_allclose(trace.customdata, expected, rtol=1e-5)
        np.testing.assert_allclose(trace.z, np.log10(expected), atol=1e-4)
        assert trace.zmin == pytest.approx(np.log10(energy.min()), abs=1e-4)
        assert trace.zmax == pytest.approx(np.log10(energy.max()), abs=1e-4)


def test_recorded_energy_stands_under_the_prediction_of_its_time():
    profile = with_gradients(make_profile())
    figure = gradient_energy(profile, timesteps=[100])
    (trace,) = maps_of(figure)
    np.testing.assert_allclose(trace.customdata, profile["gradient_energy"].values[-1, 0], rtol=1e-6)
    assert list(figure.layout.yaxis.ticktext) == ["x̂<sub>0</sub>", "energy"]
    assert list(figure.layout.xaxis.ticktext) == ["t = 83.33", "result"]


def test_the_outline_surrounds_the_pixels_of_the_mask():
    mask = np.zeros((10, 8), dtype=bool)
    mask[2:5, 1:4] = True
    mask[7, 6] = True
    profile = without(with_gradients(make_profile()), "x0")
    figure = gradient_energy(profile, timesteps=[100], mask=mask)
    line = next(trace for trace in figure.data if isinstance(trace, go.Scatter))
    edges = set()
    for k in range(0, len(line.x), 3):
        edges.add(tuple(round(float(v) * 10, 3) for v in (line.x[k], line.y[k], line.x[k + 1], line.y[k + 1])))
    expected = {(float(x), y, x + 1.0, y) for x in (1, 2, 3) for y in (2.0, 5.0)}
    expected |= {(x, float(y), x, y + 1.0) for y in (2, 3, 4) for x in (1.0, 4.0)}
    expected |= {(6.0, 7.0, 7.0, 7.0), (6.0, 8.0, 7.0, 8.0), (6.0, 7.0, 6.0, 8.0), (7.0, 7.0, 7.0, 8.0)}
    assert edges == expected


@pytest.mark.parametrize("guided", [False, True])
def test_gradient_maps_show_the_channel_of_greatest_sum_around_zero(guided):
    profile = with_gradients(make_profile(guided=guided))
    figure = gradient_maps(profile, ["mid_block2", ATTENTION], timesteps=[100])
    for trace, layer, caption in zip(figure.data, (CONV, ATTENTION), figure.layout.annotations, strict=True):
        stored = profile[f"gradient_maps/{layer}"].values[-1, 0]
        record = stored[1] if guided else stored
        channel = record.sum(axis=(1, 2)).argmax()
        np.testing.assert_array_equal(trace.z, record[channel])
        assert caption.text == f"c*={channel}"
        assert trace.zmax == -trace.zmin == pytest.approx(np.abs(record[channel]).max())


def test_gradient_maps_need_no_activations():
    profile = without(with_gradients(make_profile()), f"activations/{ATTENTION}", f"activations/{CONV}")
    assert len(gradient_maps(profile).data) > 0
    with pytest.raises(ValueError, match="record `GradientMaps"):
        gradient_maps(make_profile())


@pytest.mark.parametrize("guided", [False, True])
def test_label_sensitivity_is_a_share_per_attribute(guided):
    profile = with_gradients(make_profile(guided=guided))
    stored = profile["label_sensitivity"].values[:, 0].astype(np.float64)
    stored = stored[:, 1] if guided else stored  # (step, pixel, channel, height, width)
    strength = np.sqrt((stored.sum(axis=(-1, -2)) ** 2).mean(axis=1))
    figure = label_sensitivity(profile)
    assert [trace.name for trace in figure.data] == ["Bangs", "Male", "Smiling", "Hat"]
    for channel, trace in enumerate(figure.data):
        np.testing.assert_allclose(trace.y, 100 * strength[:, channel] / strength.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("draw", [gradient_volume, gradient_energy, label_sensitivity])
def test_what_is_not_recorded_is_an_error(draw):
    with pytest.raises(KeyError):
        draw(make_profile())
