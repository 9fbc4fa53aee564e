import base64
import io

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from diffusers_xai.plots import attention_strip, max_channel_maps, process_strip
from diffusers_xai.plots.tiles import Tile, fit_width, tile_grid
from diffusers_xai.profile.pictures import to_rgb
from tests.plots.profiles import ATTENTION, CONV, make_profile, without


def decode(trace: go.Image) -> np.ndarray:
    data = trace.source.removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def as_picture(sample: np.ndarray) -> np.ndarray:
    pixels = np.rint((np.clip(sample.astype(np.float64), -1, 1) + 1) / 2 * 255)
    return np.moveaxis(pixels, 0, -1).astype(np.uint8)


@pytest.mark.parametrize("name", ["samples", "x0"])
def test_strip_shows_the_pixels_of_equal_parts_of_the_run_and_the_result(name):
    profile = make_profile(samples=2)
    figure = process_strip(profile, name, count=5)
    recorded = [0, 3, 6, 9]  # of 12
    expected = []
    for sample in range(2):
        expected += [profile[name].values[i, sample] for i in recorded]
        expected.append(profile["final_sample"].values[sample])
    assert len(figure.data) == len(expected)
    for trace, picture in zip(figure.data, expected, strict=True):
        np.testing.assert_array_equal(decode(trace), as_picture(picture))
    assert list(figure.layout.xaxis.ticktext) == ["t = 1000", "t = 750", "t = 500", "t = 250", "result"]


def test_strip_of_a_short_or_unfinished_run_shows_what_there_is():
    assert len(process_strip(make_profile(), count=100).data) == 13
    assert len(process_strip(without(make_profile(), "final_sample"), count=4).data) == 4


def test_tiles_do_not_overlap_and_are_not_distorted():
    figure = process_strip(make_profile(samples=2), count=4)
    boxes = set()
    for trace in figure.data:
        height, width = decode(trace).shape[:2]
        assert trace.dx == pytest.approx(trace.dy)
        left, top = trace.x0 - trace.dx / 2, trace.y0 - trace.dy / 2
        boxes.add(
            (round(left, 6), round(top, 6), round(left + width * trace.dx, 6), round(top + height * trace.dy, 6))
        )
    boxes = sorted(boxes)
    assert len(boxes) == 8
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top


def test_grey_images_and_latents_have_a_picture():
    rng = np.random.default_rng(0)
    grey = rng.uniform(-1, 1, (1, 4, 5))
    assert (to_rgb(grey) == as_picture(grey)).all()
    latent = 10 * rng.normal(size=(4, 4, 5))
    picture = to_rgb(latent)
    assert picture.shape == (4, 5, 3)
    for channel in range(3):
        assert picture[..., channel].min() == 0
        assert picture[..., channel].argmax() == latent[channel].argmax()


@pytest.mark.parametrize("guided", [False, True])
def test_attention_maps_are_drawn_unchanged(guided):
    profile = make_profile(guided=guided)
    stored = profile["attention_outputs"].values[:, 0, 1] if guided else profile["attention_outputs"].values[:, 0]
    figure = attention_strip(profile, count=4)
    maps = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    for trace, i in zip(maps, (0, 4, 8), strict=True):
        np.testing.assert_array_equal(trace.z, stored[i])
        assert trace.zmin == pytest.approx(stored[i].min())
        assert trace.zmax == pytest.approx(stored[i].max())
        assert not trace.zsmooth
    assert len({(trace.zmin, trace.zmax) for trace in attention_strip(profile, shared_scale=True).data[:-1]}) == 1


@pytest.mark.parametrize("guided", [False, True])
def test_max_channel_maps_show_the_channel_of_greatest_sum(guided):
    profile = make_profile(samples=2, guided=guided)
    figure = max_channel_maps(profile, ["mid_block2", ATTENTION], timesteps=[760, 100], sample=1)
    traces, captions = iter(figure.data), iter(figure.layout.annotations)
    for layer in (CONV, ATTENTION):
        stored = profile[f"activations/{layer}"].values[:, 1]
        for i in (3, 11):  # t = 750 and 83
            record = stored[i, 1] if guided else stored[i]
            channel = record.sum(axis=(1, 2)).argmax()
            trace = next(traces)
            np.testing.assert_array_equal(trace.z, record[channel])
            assert trace.zmin == pytest.approx(record[channel].min())
            assert trace.zmax == pytest.approx(record[channel].max())
            assert next(captions).text == f"c*={channel}"
    assert next(traces, None) is None
    assert [text.split("<br>")[0] for text in figure.layout.yaxis.ticktext] == ["mid_block2", "downs.0.2.fn"]


def test_a_mask_chooses_the_channel():
    profile = make_profile()
    mask = np.zeros((10, 8), dtype=bool)
    mask[2:5, 1:4] = True
    figure = max_channel_maps(profile, [ATTENTION], timesteps=[500], mask=mask)
    record = profile[f"activations/{ATTENTION}"].values[6, 0]
    assert figure.layout.annotations[0].text == f"c*={record[:, mask].sum(axis=1).argmax()}"


def test_maps_without_activations_are_an_error():
    with pytest.raises(ValueError, match="record `Activations"):
        max_channel_maps(without(make_profile(), f"activations/{ATTENTION}", f"activations/{CONV}"))
    with pytest.raises(KeyError):
        max_channel_maps(make_profile(), ["no.such.layer"])


def test_at_another_width_the_tiles_leave_no_gap():
    figure = tile_grid([[Tile(np.zeros((4, 4)), "a"), Tile(np.zeros((4, 4)), "b")]] * 2, ["x", "y"], ["1", "2"])
    for width in (1080, 800):
        layout = fit_width(go.Figure(figure), width).layout
        margin = layout.margin
        per_unit = (width - margin.l - margin.r) / (layout.xaxis.range[1] - layout.xaxis.range[0])
        down = (layout.height - margin.t - margin.b) / (layout.yaxis.range[0] - layout.yaxis.range[1])
        assert down == pytest.approx(per_unit, rel=0.01)  # heights are whole pixels
    assert fit_width(go.Figure(layout={"height": 300}), 800).layout.height == 300


def test_captions_of_neighbours_do_not_touch_at_another_width():
    tile = Tile(np.zeros((4, 4)), "name", "downs.2.2.fn: SSIM 1.00")
    for columns, width in ((5, 820), (8, 820), (2, 820)):
        layout = fit_width(tile_grid([[tile] * columns], [""] * columns, ["row"]), width).layout
        size = layout.annotations[0].font.size
        pitch = (width - layout.margin.l - layout.margin.r) / layout.xaxis.range[1]  # of a tile that is one unit wide
        assert size * 0.5 * len(tile.caption) < pitch or size == 8  # letters are about half as wide as high
    short = tile_grid([[Tile(np.zeros((4, 4)), "name", "c*=1")] * 2], ["", ""], ["row"])
    assert fit_width(short, 820).layout.annotations[0].font.size == 13
