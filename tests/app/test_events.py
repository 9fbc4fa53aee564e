"""The handlers behind the buttons, called as the page calls them."""

import gradio as gr
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import models, server, session, settings
from tests.app.handlers import handler
from tests.tiny import convnext_unet, unet_2d


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    unets = {"faces": convnext_unet(), "no labels": unet_2d()}
    offered = {name: models.Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in unets.items()}
    return server.build(offered, settings.Limits(), steps=4, every=2, gradients=False)


@pytest.mark.parametrize("name", ["sample", "sweep"])
def test_a_run_that_was_cancelled_while_it_waited_does_not_start(demo, name):
    run, visitor, values = handler(demo, name)
    visitor.stop.set()
    *_, last = run(*values)
    assert "Cancelled: nothing was changed." in last
    assert visitor.profile is None


def test_a_new_run_is_not_cancelled_by_an_earlier_one(demo):
    visitor = session.Session()
    visitor.stop.set()
    begins = [function for function in demo.fns.values() if function.name == "begin"]
    assert len(begins) == 3  # of Sample, of the plan, of the sweep
    assert not any(function.queue for function in begins)
    begins[0].fn(visitor)
    assert not visitor.stop.is_set()


@pytest.mark.parametrize("name", ["google/ddpm-cat-256", "/etc", "", None])
def test_only_models_of_the_server_can_be_chosen(demo, name):
    choose, visitor, values = handler(demo, "choose")
    with pytest.raises(gr.Error, match="not offered here. Offered: faces, no labels"):
        choose(visitor, name, *values[2:])
    sample, visitor, values = handler(demo, "sample")
    with pytest.raises(gr.Error, match="not offered here"):
        list(sample(visitor, name, *values[2:]))


def test_a_visitor_s_choice_is_not_another_s(demo):
    sample, one, values = handler(demo, "sample")
    list(sample(one, "no labels", *values[2:]))
    other = session.Session()
    list(sample(other, *values[1:]))
    assert (one.settings.model, other.settings.model) == ("no labels", "faces")
    assert set(one.blocks) != set(other.blocks)


def test_a_long_run_is_told_and_starts_at_the_second_press():
    model = models.Model("faces", XAIPipeline(convnext_unet(), DDPMScheduler()))
    limits = settings.Limits(confirm_seconds=0)
    demo = server.build({"faces": model}, limits, steps=4, every=2, gradients=False)
    sample, visitor, values = handler(demo, "sample")
    ((_, told),) = sample(*values)
    assert "press **Sample** again" in told
    assert "MB" in told
    assert visitor.profile is None
    *_, (_, told) = sample(*values)
    assert told.startswith("Done:")
    sweep, visitor, values = handler(demo, "sweep")
    ((told, *_),) = sweep(*values)
    assert "press the button again" in told
    *_, (told, *_) = sweep(*values)
    assert told.startswith("Done:")
