"""The figures of the app."""

import numpy as np
import pytest

from diffusers_xai import plots
from tests.plots.profiles import ATTENTION, make_profile, without


def test_schematic_lights_the_chosen_blocks_only():
    blocks = ["downs.0", "downs.1", "mid", "ups.0", "ups.1"]
    figure = plots.unet_schematic(blocks, {"mid": "mid_attn.fn"})
    boxes = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert len(boxes) == 5
    assert [box.line.width for box in boxes] == [1, 1, 3, 1, 1]
    assert [note.text for note in figure.layout.annotations][2] == "<b>● mid</b><br>mid_attn.fn"
    depths = [(box.y0 + box.y1) / 2 for box in boxes]
    assert np.allclose(depths, [0, -1, -2, -1, 0])
    skips = [shape for shape in figure.layout.shapes if shape.line.dash == "dot"]
    assert len(skips) == 2
    with pytest.raises(ValueError, match="downs.7"):
        plots.unet_schematic(blocks, {"downs.7": ""})


def test_channel_map_shows_the_channel_and_the_max_channel():
    profile = make_profile()
    figure = plots.channel_map(profile, "downs.0.2.fn", step=4, channel=3)
    record = profile[f"activations/{ATTENTION}"].sel(step=4).isel(sample=0).values
    best = record.sum(axis=(1, 2)).argmax()
    maps = [trace.z for trace in figure.data if trace.type == "heatmap"]
    assert np.array_equal(maps[0], record[3])
    assert np.array_equal(maps[1], record[best])
    time = float(profile[f"activations/{ATTENTION}"]["timestep"].sel(step=4))
    assert figure.layout.yaxis.ticktext[0].endswith(f"<br>t = {time:.4g}")
    with pytest.raises(ValueError, match=r"0\.\.5"):
        plots.channel_map(profile, "downs.0.2.fn", step=4, channel=6)


def test_attention_distance_is_the_norm_of_the_difference():
    one = make_profile()
    other = make_profile()
    other["attention_outputs"].values[:] = other["attention_outputs"].values[::-1].copy()
    figure = plots.attention_distance(one, other)
    difference = (one["attention_outputs"].values - other["attention_outputs"].values)[:, 0].astype(float)
    assert np.allclose(figure.data[0].y, np.sqrt((difference**2).sum(axis=(1, 2))))
    with pytest.raises(KeyError):
        plots.attention_distance(one, without(other, "attention_outputs"))
