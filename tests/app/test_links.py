"""Settings as links, and what of a link is refused."""

import json
from urllib.parse import parse_qsl

import numpy as np
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import links, models, settings
from diffusers_xai.measures import mask_to_runs
from tests.tiny import convnext_unet, unet_2d


LIMITS = settings.Limits()


@pytest.fixture(scope="module")
def offered():
    unets = {"faces": convnext_unet(), "classes": unet_2d(num_class_embeds=10), "no labels": unet_2d()}
    return {name: models.Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in unets.items()}


def mask(*box):
    array = np.zeros((16, 16), dtype=bool)
    array[box[0] : box[1], box[2] : box[3]] = True
    return json.dumps(mask_to_runs(array))


def query_of(wanted):
    return dict(parse_qsl(links.to_query(wanted).removeprefix("?"), keep_blank_values=True))


FULL = settings.Settings(
    model="faces", label=2, seed=5, steps=8, every=2, layers=("mid_block.attentions.0.attn",), gradients=True,
    mask=mask(2, 4, 3, 7), scheduler="DDIM", guidance=2.5, weights=True,
    ablations=(("down_blocks.0.resnets.0", 3), ("mid_block.resnets.0", 1)), switch_at=4,
    switch_to=1,
)  # fmt: skip


def test_a_link_holds_all_settings(offered):
    assert set(query_of(FULL)) == links.NAMES
    assert links.from_query(query_of(FULL), offered, LIMITS) == FULL


def test_a_link_of_another_model(offered):
    wanted = settings.Settings(
        model="no labels", label=None, seed=7, layers=("mid_block.attentions.0",), gradients=False
    )  # fmt: skip
    assert links.from_query(query_of(wanted), offered, LIMITS) == wanted
    assert "label" not in query_of(wanted)
    classes = links.from_query({"model": "classes", "label": "9"}, offered, LIMITS)
    assert (classes.model, classes.label) == ("classes", 9)


def test_what_a_link_leaves_out_is_the_default(offered):
    found = links.from_query({"seed": "3"}, offered, LIMITS, steps=25, every=5)
    assert (found.model, found.seed, found.steps, found.every) == ("faces", 3, 25, 5)
    assert found.layers == offered["faces"].default(LIMITS).layers


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"seed": "x"}, "damaged"),
        ({"label": "16"}, "link to layers and labels that"),
        ({"label": "٣"}, "damaged"),
        ({"seed": " 5"}, "damaged"),
        ({"seed": "1_0"}, "damaged"),
        ({"seed": "9" * 5000}, "damaged"),
        ({"switch": "٣:1"}, "damaged"),
        ({"layers": "nowhere"}, "link to layers and labels that"),
        ({"ablate": "x"}, "damaged"),
        ({"ablate": "nowhere:3"}, "link to layers and labels that"),
        ({"mask": "{"}, "damaged"),
        ({"mask": '{"size": [99999, 99999], "runs": [0, 9999999999]}'}, "damaged"),
        ({"mask": '{"size": [16, 16], "runs": [0, 9999999999]}'}, "damaged"),
        ({"switch": "3"}, "damaged"),
        ({"switch": "3:16"}, "link to layers and labels that"),
        ({"scheduler": "Heun"}, "a scheduler out of"),
        ({"guidance": "nan"}, "damaged"),
        ({"guidance": "1e1"}, "damaged"),
        ({"guidance": "99"}, "guidance scale from 1"),
        ({"model": "no labels", "guidance": "2"}, "as no labels has no null label, got 2"),
        ({"gradients": "2"}, "damaged"),
        ({"ablate": "mid_block.resnets.0:9999"}, "expected a channel from 0 to"),
        ({"layers": "mid_block.resnets.0,mid_block.resnets.1"}, "several of mid"),
        ({"mask": "[" * 5000}, "damaged"),
        ({"mask": "9" * 40000}, "got a longer one"),
        ({"label": "2", "switch": "3:2"}, "another label to switch to"),
        ({"steps": "99999"}, "1 to 1000 steps"),
        (
            {"model": "google/ddpm-cat-256"},
            "offered here, got 'google/ddpm-cat-256'; available: faces, classes, no labels",
        ),
        ({"model": "/etc"}, "got '/etc'"),
        ({"model": "<b>[x](https://y.z)"}, r"got '·b··x·\(https·y.z\)'"),
        ({"scheduler": "[x](https://y.z)"}, r"got '·x·\(https·y.z\)'"),
        ({"model": "classes", "label": "10"}, "link to layers and labels that"),
        ({"model": "classes", "layers": "mid_block.attentions.0.attn"}, "link to layers and labels that"),
        ({"model": "no labels", "switch": "3:1"}, "link to layers and labels that"),
    ],
)
def test_a_bad_link_is_refused(offered, query, message):
    with pytest.raises(settings.SettingsError, match=message):
        links.from_query(query, offered, LIMITS)
