"""Settings, limits, links and sessions of the app, without a browser."""

import copy
import importlib
import json
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.backbones.blocks import layers_by_block
from diffusers_xai.measures import mask_from_drawing, mask_to_runs
from tests.tiny import convnext_unet, unet_2d


pytest.importorskip("gradio")
FOLDER = Path(__file__).parents[2] / "spaces"


def module(name):
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


settings = module("space_settings")
session = module("space_session")


@pytest.fixture
def pipe():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def mask(*box):
    array = np.zeros((16, 16), dtype=bool)
    array[box[0] : box[1], box[2] : box[3]] = True
    return json.dumps(mask_to_runs(array))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1001}, "1 to 1000 steps"),
        ({"seed": -1}, "seed"),
        ({"every": 0}, "Record every"),
        ({"layers": ("a",) * 7}, "at most 6 blocks"),
        ({"ablations": (("a", 1),) * 9}, "at most 8 channels"),
        ({"switch_at": 101}, "Switch"),
        ({"mask": mask(0, 16, 0, 16), "gradients": True}, "holds 256"),
        ({"mask": mask(0, 0, 0, 0)}, "holds 0"),
    ],
)
def test_what_is_too_much_is_refused(changes, message):
    with pytest.raises(settings.SettingsError, match=message):
        settings.Settings(**changes).check(settings.Limits(max_mask_pixels=255))


def test_a_link_holds_all_settings(pipe):
    from urllib.parse import parse_qsl

    wanted = settings.Settings(
        label=2, seed=5, steps=8, every=2, layers=("mid_block.attentions.0.attn",), gradients=True,
        mask=mask(2, 4, 3, 7), ablations=(("down_blocks.0.resnets.0", 3),), switch_at=4, switch_to=1,
    )  # fmt: skip
    query = dict(parse_qsl(wanted.to_query().removeprefix("?"), keep_blank_values=True))
    assert settings.from_query(query, pipe, settings.Settings(), settings.Limits()) == wanted


@pytest.mark.parametrize(
    "query",
    [
        {"seed": "x"}, {"label": "16"}, {"layers": "nowhere"}, {"ablate": "x"}, {"ablate": "nowhere:3"}, {"mask": "{"},
        {"mask": '{"size": [99999, 99999], "runs": [0, 9999999999]}'}, {"switch": "3"}, {"steps": "99999"},
    ],
)  # fmt: skip
def test_a_bad_link_is_refused(pipe, query):
    with pytest.raises(settings.SettingsError):
        settings.from_query(query, pipe, settings.Settings(), settings.Limits())


def test_sampling_streams_states_and_ends_with_the_profile(pipe):
    wanted = settings.Settings(label=1, steps=4, every=2, gradients=False, layers=("mid_block.attentions.0.attn",))
    items = list(session.sample_stream(pipe, wanted, settings.Limits(), None))
    assert all(isinstance(item, tuple) and item[1].shape == (3, 16, 16) for item in items[:-1])
    profile = items[-1]
    assert profile["samples"]["step"].values.tolist() == [0, 2]
    assert profile["attention_map"].sizes["step"] == 2
    assert "activations/mid_block.attentions.0.attn" in profile


def test_a_stopped_and_a_late_run_end_readably(pipe):
    stop = threading.Event()
    stop.set()
    with pytest.raises(session.Stopped, match="Cancelled"):
        list(session.sample_stream(pipe, settings.Settings(label=1, gradients=False), settings.Limits(), stop))
    limits = settings.Limits(max_seconds=0)
    with pytest.raises(session.Stopped, match="limit"):
        list(session.sample_stream(pipe, settings.Settings(label=1, gradients=False), limits, None))


@pytest.mark.slow
def test_two_hundred_runs_leave_one_profile(pipe):
    visitor, seen = session.Session(), []
    for seed in range(200):
        wanted = settings.Settings(label=1, seed=seed, steps=1, every=1, gradients=False)
        *_, visitor.profile = session.sample_stream(pipe, wanted, settings.Limits(), None)
        seen.append(weakref.ref(visitor.profile))
    assert sum(reference() is not None for reference in seen) <= 3
    other = copy.deepcopy(visitor)
    assert other.profile is None
    assert other.folder != visitor.folder
    folder = visitor.folder
    visitor.close()
    assert visitor.profile is None
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
