"""The handlers behind the buttons, called as the page calls them."""

import threading
from contextlib import ExitStack

import gradio as gr
import numpy as np
import pytest
from diffusers import DDPMScheduler
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.app import models, server, session, settings
from diffusers_xai.app.events import Events
from tests.app.handlers import handler, of_page
from tests.tiny import convnext_unet, unet_2d


@pytest.fixture(scope="module")
def demo():
    unets = {"faces": convnext_unet(), "no labels": unet_2d()}
    offered = {name: models.Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in unets.items()}
    return server.build(
        offered, settings.Limits(confirm_seconds=600, max_seconds=600), steps=4, every=2, gradients=False
    )


@pytest.mark.parametrize("name", ["sample", "sweep"])
def test_a_run_that_was_cancelled_while_it_waited_does_not_start(demo, name):
    run, visitor, values = handler(demo, name)
    visitor.cancel()
    last = list(run(*values))[-1]
    told = last.values() if isinstance(last, dict) else last
    assert "Cancelled: nothing was changed." in " ".join(map(str, told))
    assert visitor.result is None


def test_a_run_after_a_cancelled_one_waits_for_its_end_and_neither_takes_the_other_s_cancellation(demo):
    sample, visitor, values = handler(demo, "sample")
    names = [c.elem_id for c in of_page(demo, "sample").inputs]
    asks = [function.fn for function in demo.demo.fns.values() if function.name == "ask"]
    assert len(asks) == 3  # of Sample, the sweep and the experiment

    def asked(seed):
        changes = {"asked": asks[0](visitor), "seed": seed}
        return sample(*(changes.get(name, value) for name, value in zip(names, values, strict=True)))

    cancelled = asked(7)
    next(cancelled)
    waiting = asked(8)  # in Gradio's queue
    visitor.cancel()
    told = []
    later = threading.Thread(target=lambda run: told.extend(run), args=[asked(9)], daemon=True)
    later.start()
    assert "Cancelled" in list(cancelled)[-1][1]
    later.join(timeout=300)
    assert told[-1][1].startswith("Done:")
    assert visitor.result.settings.seed == 9
    assert "Cancelled" in list(waiting)[-1][1]
    assert visitor.result.settings.seed == 9


def test_a_run_that_waits_for_a_cancelled_one_can_be_cancelled_too():
    visitor, told = session.Session(), []

    def wait(number):
        try:
            with visitor.running(number):
                told.append("ran")
        except settings.SettingsError as refused:
            told.append(str(refused))

    with visitor.running(visitor.ask()):
        visitor.cancel()
        waiting = threading.Thread(target=wait, args=[visitor.ask()], daemon=True)
        waiting.start()
        visitor.cancel()
        waiting.join(timeout=300)
        assert told == ["Cancelled: nothing was changed."]
    wait(visitor.ask())
    assert told[1:] == ["ran"]


def test_only_runs_stand_in_the_queue_and_are_bounded(demo):
    functions = [function for function in demo.demo.fns.values() if function.fn is not None and function.queue]
    private = {function.name for function in functions if function.api_visibility == "private"}
    assert private == {"sample", "sweep", "experiment"}
    assert not demo.demo.api_open


def test_questions_of_cost_do_not_keep_the_threads_of_the_page(demo):
    """Gradio has forty threads, and each question may wait some seconds for a model that is busy."""
    asking = [function for function in demo.demo.fns.values() if function.name == "cost"]
    events = next(f.fn.__wrapped__.__self__ for f in asking if isinstance(f.fn.__wrapped__.__self__, Events))
    values = [[session.Session(), *(component.value for component in f.inputs[1:])] for f in asking]
    assert len(asking) == 2  # of the settings, and of an experiment
    with ExitStack() as others:
        for _ in range(demo.limits.asking):
            others.enter_context(events.asking())
        for function, sent in zip(asking, values, strict=True):
            assert "Too many visitors ask" in function.fn(*sent)
    for function, sent in zip(asking, values, strict=True):
        assert "Plan:" in function.fn(*sent)


@pytest.mark.parametrize("name", ["google/ddpm-cat-256", "/etc", "", None, ["faces"], 3])
def test_only_models_of_the_server_can_be_chosen(demo, name):
    choose, visitor, values = handler(demo, "choose")
    with pytest.raises(gr.Error, match="that is offered here, got .*; available: faces, no labels"):
        choose(visitor, name, *values[2:])
    sample, visitor, values = handler(demo, "sample")
    ((_, told),) = sample(visitor, 0, name, *values[3:])
    assert "a model that is offered here" in told


def test_a_visitor_has_one_run_at_a_time(demo):
    sample, visitor, values = handler(demo, "sample")
    run = sample(*values)
    next(run)
    ((_, told),) = sample(*values)
    assert "You already have a run in progress" in told
    run.close()
    *_, (_, told) = sample(*values)
    assert told.startswith("Done:")


def test_a_cancelled_run_leaves_picture_and_figures_of_the_one_before(demo):
    sample, visitor, values = handler(demo, "sample")
    calls, cancelled_at = [], None

    def count(module, args):
        if isinstance(module, ConvNextUNet2DModel):
            calls.append(module)
            if len(calls) == cancelled_at:
                visitor.cancel()

    hook = register_module_forward_pre_hook(count)
    try:
        *_, (first, _) = sample(*values)
        before = visitor.result
        position = [c.elem_id for c in of_page(demo, "sample").inputs].index("seed")
        values[position] = 7
        cancelled_at = 2 * len(calls) - 1  # the last but one of this run
        *_, (shown, told) = sample(*values)
    finally:
        hook.remove()
    assert len(calls) >= cancelled_at
    assert np.array_equal(shown, first)
    assert "Cancelled" in told
    assert "the run before" in told
    assert visitor.result is before


# elem_id of a control -> what a program may send, and what it is told.
BAD_VALUES = [
    ("seed", 1.5, "whole number from 0"), ("seed", None, "whole number"), ("seed", "x", "got 'x'"),
    ("seed", 2**63, "whole number from 0 to 2⁶³ − 1, got 9"),
    ("seed", float("nan"), "whole number"), ("seed", float("inf"), "whole number"),
    ("seed", True, "whole number"), ("seed", 10**400, "a number of many digits"),
    ("label", ["\ud800\x00"], "got '\\ud800\\x00'"), ("every", -0.5, "from 1"),
    ("steps", 0, "from 1 to 1000"), ("steps", 10**9, "from 1 to 1000"),
    ("steps", [4], "something else"), ("every", 0, "from 1"),
    ("scheduler", "Heun", "got 'Heun'; available"),
    ("scheduler", None, "got None; available"),
    ("guidance", 0.5, "from 1 to 20"), ("guidance", float("nan"), "from 1 to 20"),
    ("label", ["Hat"], "got 'Hat'"), ("label", "Smiling", "a list of at most 4"),
    ("label", [["Smiling"]], "got something else"),
    ("blocks", ["nowhere"], "got 'nowhere'"), ("blocks", ["mid"] * 99, "a list of at most 6"),
    ("gradients", "yes", "expected yes or no"), ("weights", 1, "expected yes or no"),
    ("ablations", ["mid:5:7"], "layer:channel"), ("ablations", ["nowhere:5"], "layer:channel"),
    ("ablations", ["downs.0.0:9999"], "expected a channel from 0 to"), ("ablations", "mid:5", "a list of texts"),
    ("ablations", ["mid:٣"], "layer:channel"), ("switch", None, "expected yes or no"),
    ("mask", {"layers": [{"path": "/etc/passwd"}]}, "cannot be read"), ("mask", {"layers": [{}] * 9}, "at most 4"),
    ("mask", {"layers": {"0": 1}}, "at most 4"),
]  # fmt: skip


@pytest.mark.parametrize(("control", "value", "message"), BAD_VALUES)
def test_values_are_refused_in_words_before_work(demo, control, value, message, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("work was begun")

    monkeypatch.setattr(XAIPipeline, "plan", never)
    monkeypatch.setattr(XAIPipeline, "__call__", never)
    sample, visitor, values = handler(demo, "sample")
    values[[c.elem_id for c in of_page(demo, "sample").inputs].index(control)] = value
    ((_, told),) = sample(*values)
    assert message in told
    assert "Traceback" not in told


def test_a_switch_to_the_same_label_is_refused(demo):
    sample, visitor, values = handler(demo, "sample")
    names = [c.elem_id for c in of_page(demo, "sample").inputs]
    values[names.index("switch")] = True
    values[names.index("switch-to")] = values[names.index("label")]
    ((_, told),) = sample(*values)
    assert "another label to switch to" in told


def test_a_visitor_s_choice_is_not_another_s(demo):
    sample, one, values = handler(demo, "sample")
    other = session.Session()
    list(sample(other, *values[1:]))
    names = [c.elem_id for c in of_page(demo, "sample").inputs]
    values[names.index("model")], values[names.index("blocks")] = "no labels", ["mid"]
    list(sample(one, *values[1:]))
    assert (one.result.settings.model, other.result.settings.model) == ("no labels", "faces")
    assert set(one.result.blocks) != set(other.result.blocks)


def test_a_long_run_is_told_and_starts_at_the_second_press():
    model = models.Model("faces", XAIPipeline(convnext_unet(), DDPMScheduler()))
    limits = settings.Limits(confirm_seconds=0)
    demo = server.build({"faces": model}, limits, steps=4, every=2, gradients=False)
    sample, visitor, values = handler(demo, "sample")
    ((_, told),) = sample(*values)
    assert "press **Sample** again" in told
    assert "MB" in told
    assert visitor.result is None
    *_, (_, told) = sample(*values)
    assert told.startswith("Done:")
    sweep, visitor, values = handler(demo, "sweep")
    (asked,) = sweep(*values)
    assert "press the button again" in str(asked.values())
    *_, done = sweep(*values)
    assert "Shown: from" in str(done.values())


def test_what_acts_on_a_run_is_about_the_one_that_the_page_shows(demo):
    """A newer run is in the session before its figures are on the page."""
    sample, visitor, values = handler(demo, "sample")
    list(sample(*values))
    before, layer = visitor.result, visitor.result.settings.layers[0]
    sent = {"map-layer": layer, "grad-layer": layer, "attention-layer": layer, "model": "faces", "ablations": []}
    acting = {
        id(function): [function.fn, *(sent.get(component.elem_id, 0) for component in function.inputs[2:])]
        for function in demo.demo.fns.values()
        if "run" in [component.elem_id for component in function.inputs]
    }
    # Keep, choose a kept one, mask c*, a layer's attention; of two maps the layer, which redraws, and two sliders.
    assert len(acting) == 4 + 2 * 4
    for function, *others in acting.values():
        function(visitor, before.id, *others)
    kept = list(visitor.kept)
    list(sample(*values))
    assert visitor.result.words == before.words  # of which other region or file is not always told
    for function, *others in acting.values():
        with pytest.raises(gr.Error, match="A newer run is about to be shown"):
            function(visitor, before.id, *others)
    assert visitor.kept == kept


def test_controls_that_were_changed_during_a_run_are_told_after_it(demo):
    sample, visitor, values = handler(demo, "sample")
    run = sample(*values)
    next(run)
    marks = [function for function in demo.demo.fns.values() if function.name == "mark"]
    shows = [function for function in demo.demo.fns.values() if function.name == "show"]
    after = [mark for mark in marks if mark.trigger_after in {show._id for show in shows}]
    assert len(after) == len(shows) == 2  # after a run, and after an opened file
    list(run)
    names = [c.elem_id for c in of_page(demo, "sample").inputs]
    del names[1], values[1]  # the number of the run
    assert after[0].fn(*values) == ""
    for name, value in (("seed", 8), ("seed", 1.5), ("label", ["Male"])):
        changed = [value if there == name else old for there, old in zip(names, values, strict=True)]
        assert "have changed since" in after[0].fn(*changed), (name, value)
