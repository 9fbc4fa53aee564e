"""Settings, limits, links and sessions of the app, without a browser."""

import copy
import json
import weakref

import numpy as np
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import models, runs, session, settings
from diffusers_xai.denoisers.blocks import layers_by_block
from diffusers_xai.measures import mask_from_drawing, mask_to_runs
from tests.tiny import convnext_unet, unet_2d


@pytest.fixture
def model():
    return models.Model("tiny", XAIPipeline(convnext_unet(), DDPMScheduler()))


def mask(*box):
    array = np.zeros((16, 16), dtype=bool)
    array[box[0] : box[1], box[2] : box[3]] = True
    return json.dumps(mask_to_runs(array))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1001}, "1 to 1000 steps"),
        ({"seed": -1}, "seed"),
        ({"every": 0}, "record every 1 to 100 steps, got 0"),
        ({"layers": ("a",) * 7}, "at most 6 blocks"),
        ({"ablations": (("a", 1),) * 9}, "at most 8 masked channels, got 9"),
        ({"switch_at": 101}, "a step from 0 to 100, got 101"),
        ({"mask": mask(0, 0, 0, 0)}, "got 0 pixels: draw one"),
    ],
)
def test_what_is_too_much_is_refused(changes, message):
    with pytest.raises(settings.SettingsError, match=message):
        settings.Settings(**changes).check(settings.Limits())


@pytest.mark.parametrize(
    ("most", "expected"),
    [(256, np.s_[:, :]), (255, np.s_[::2, ::2]), (64, np.s_[::2, ::2]), (63, np.s_[::3, ::3]), (1, np.s_[::16, ::16])],
)
def test_of_a_large_region_evenly_spaced_pixels_have_gradients(most, expected):
    found = settings.Settings(mask=mask(0, 16, 0, 16)).thinned(settings.Limits(max_mask_pixels=most)).mask_array()
    wanted = np.zeros((16, 16), bool)
    wanted[expected] = True
    assert np.array_equal(found, wanted)
    # Two corners of the other diagonal: neither lies where the region's first row and column meet.
    corners = np.fliplr(np.eye(16, dtype=bool))
    thin = settings.Settings(mask=json.dumps(mask_to_runs(corners))).thinned(settings.Limits(max_mask_pixels=8))
    assert thin.mask_array().sum() == 8
    assert corners[thin.mask_array()].all()


@pytest.mark.slow
def test_fifty_runs_leave_one_profile(model):
    visitor, seen = session.Session(), []
    for seed in range(50):
        wanted = settings.Settings(label=1, seed=seed, steps=1, every=1, gradients=False)
        *_, profile = runs.run_stream(runs.sample, model, wanted, settings.Limits(), None)
        visitor.result = session.Result(profile, wanted, model.blocks, "")
        seen.append(weakref.ref(profile))
        del profile
    assert sum(reference() is not None for reference in seen) <= 3
    other = copy.deepcopy(visitor)
    assert other.result is None
    assert other.folder != visitor.folder
    folder = visitor.folder
    visitor.close()
    assert visitor.result is None
    assert not folder.exists()


def test_errors_of_the_server_tell_nothing(caplog):
    import gradio as gr

    def broken():
        raise OSError("/secret/path")

    with pytest.raises(gr.Error) as error:
        session.readable_errors(broken)()
    assert "secret" not in str(error.value)
    assert "secret" in caplog.text


def test_blocks_in_the_order_of_the_forward_pass():
    assert list(layers_by_block(convnext_unet())) == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]
    assert list(layers_by_block(unet_2d())) == [
        "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"
    ]  # fmt: skip


def test_a_drawing_becomes_the_pixels_that_it_touches():
    drawn = np.zeros((40, 40), dtype=bool)
    drawn[10:20, 10:30] = True
    drawn[39, 39] = True  # a hundredth of its pixel
    expected = np.zeros((4, 4), dtype=bool)
    expected[1, 1:3] = True
    assert np.array_equal(mask_from_drawing(drawn, (4, 4)), expected)
