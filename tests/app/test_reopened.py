"""The settings of a profile from a file: as it was made, or none."""

import copy
import json

import numpy as np
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import DiffusionProfile, XAIPipeline
from diffusers_xai.app import figures
from diffusers_xai.app.models import Model
from diffusers_xai.app.reopened import settings_of
from diffusers_xai.app.runs import run_stream, sample
from diffusers_xai.app.session import Result
from diffusers_xai.app.settings import Limits, Settings
from diffusers_xai.measures import mask_to_runs
from tests.tiny import convnext_unet


@pytest.fixture(scope="module")
def offered():
    return {"faces": Model("faces", XAIPipeline(convnext_unet(), DDPMScheduler()))}


@pytest.fixture(scope="module")
def made(offered):
    mask = np.zeros((16, 16), bool)
    mask[4:6, 3:5] = True
    settings = Settings(
        "faces", 3, 5, steps=6, every=2, scheduler="DDIM", layers=("mid_block.resnets.0",),
        mask=json.dumps(mask_to_runs(mask)), ablations=(("mid_block.resnets.1", 2),), switch_at=4, switch_to=1,
    )  # fmt: skip
    *_, profile = run_stream(sample, offered["faces"], settings, Limits(max_mask_pixels=2))
    return settings, profile


def test_they_are_those_of_the_run(offered, made):
    settings, profile = made
    assert settings_of(profile, offered, Limits()) == settings
    # Of the four pixels of its region, one of each second row and column has a volume, and the page says so.
    assert profile["gradient_volume"].sizes["pixel"] == 1
    told = figures.notes(Result(profile, settings, {}, ""), True, True)["gradients_note"]
    assert "of 1 of the region’s 4 pixels" in told


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["class_labels"], [99]),
        (["class_labels"], [-2]),
        (["seeds"], [5, 6]),
        (["seeds"], [-5]),
        (["eta"], 0.5),
        (["num_inference_steps"], 10**9),
        (["edits", 0, "channels"], [2, 3]),
        (["edits", 0, "channels"], [99]),
        (["edits", 0, "amount"], 0.5),
        (["edits", 1, "to"], 99),
        (["edits", 1, "type"], "LayerEdit"),
        (["edits"], 7),
        (["record"], [{"type": "Samples"}]),
        (["scheduler", "class"], "EulerDiscreteScheduler"),
        (["model", "config", "attention_head_dim"], 8),
        (["model"], None),
    ],
)
def test_what_the_controls_cannot_say_is_not_said(offered, made, path, value):
    facts = copy.deepcopy(made[1].provenance)
    at = facts
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert settings_of(DiffusionProfile(dict(made[1]), facts), offered, Limits()) is None
