"""Experiments on the page: each runs on the page's settings, and what a model cannot answer is refused in words."""

import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_xai import XAIPipeline
from diffusers_xai.app import models, questions, runs, server, settings
from diffusers_xai.app.asking import OPEN_ROWS, table_html
from diffusers_xai.checkpoints.drawn_judge import DrawnFaceJudge
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.base import SPANNED_LABELS
from tests.app.handlers import handler, of_page
from tests.tiny import convnext_unet, unet_2d


@pytest.fixture(scope="module")
def offered():
    unets = {"faces": convnext_unet(), "no labels": unet_2d(), "plain": unet_2d(attention=False, num_class_embeds=10)}
    unets |= {"trained longer": convnext_unet(), models.DRAWN: convnext_unet(block_out_channels=(8, 8))}
    offered = {name: models.Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in unets.items()}
    models.relate(offered)
    return offered


@pytest.fixture(scope="module")
def demo(offered):
    limits = settings.Limits(confirm_seconds=600, max_seconds=600)
    return server.build(offered, limits, steps=4, every=2, gradients=False)


@contextmanager
def each_call(kind, tell):
    """Tells of the sample of every call of a network of some kind."""
    hook = register_module_forward_pre_hook(lambda module, args: tell(args[0]) if type(module) is kind else None)
    try:
        yield
    finally:
        hook.remove()


def asked(demo, **changes):
    """The handler of the button, with some of its inputs changed by `elem_id`; and what it has told and shown."""
    run, visitor, values = handler(demo, "experiment")
    names = [c.elem_id for c in of_page(demo, "experiment").inputs]
    for name, value in changes.items():
        values[names.index(name.replace("_", "-"))] = value
    *_, last = run(*values)
    return visitor, {component.elem_id: value for component, value in last.items()}


def test_the_result_is_that_of_the_page_s_settings(demo, offered, tmp_path):
    visitor, shown = asked(demo, experiment="ssim-trajectory", experiment_seeds=2, seed=7, label=["Male"])
    expected = EXPERIMENTS["ssim-trajectory"].run(offered["faces"].pipe, Sampling([0b0100], [7, 8], 4))
    told = shown["experiment-shown"]
    for words in (
        "Shown: How much each step changes the image",
        "Male",
        "seeds 7 to 8",
        "4 steps",
        "control: the model's",
    ):
        assert words in told
    archive = zipfile.ZipFile(shown["experiment-file"]["value"])
    archive.extractall(tmp_path)
    result = ExperimentResult.load(tmp_path / "ssim-trajectory")
    # The server's thread may sum in another order: 2e-7 were seen.
    np.testing.assert_allclose(result.data["ssim"], expected.data["ssim"], rtol=1e-5)
    assert "How much each step changes the image" in (tmp_path / "report.html").read_text()
    assert shown["experiment-plot"]["visible"]
    visitor.close()


def test_no_place_of_the_server_is_in_the_file(demo, offered, tmp_path):
    offered["no labels"].pipe.register_to_config(_name_or_path="/secret/place")
    visitor, shown = asked(demo, model="no labels", experiment="process", experiment_seeds=1, blocks=[])
    archive = zipfile.ZipFile(shown["experiment-file"]["value"])
    assert not any(b"/secret" in archive.read(name) or str(visitor.folder).encode() in archive.read(name)
                   for name in archive.namelist())  # fmt: skip
    visitor.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "label-pairs"}, "that are offered"),
        ({"experiment": "../x"}, "that are offered"),
        ({"experiment": None}, "that are offered"),
        ({"experiment_seeds": 9}, "from 1 to 8"),
        ({"experiment_seeds": 1.5}, "from 1 to 8"),
        ({"experiment": "emergence", "experiment_seeds": 2}, "at least 3 seeds"),
        (
            {"experiment": "label-divergence", "label": ["Male"], "experiment_to": ["Male"]},
            "expected two, got 4 for both",
        ),
        ({"experiment": "label-divergence", "experiment_to": ["Hat"]}, "that are offered"),
        ({"experiment": "label-divergence", "model": "no labels", "blocks": []}, "a model with two or more"),
        (
            {"experiment": "predetermination", "steps": 1, "experiment_to": ["Male"]},
            "faces cannot answer this: Expected switches in 2..1, got 1",
        ),
        ({"experiment": "concepts"}, "available: drawn-32"),
        ({"seed": 2**63 - 3}, "Noise seed: expected at most 2⁶³ − 9, got"),
    ],
)
def test_what_cannot_be_asked_is_told_in_words(demo, changes, message):
    _, shown = asked(demo, **changes)
    assert set(shown) == {"experiment-status"}
    assert message in shown["experiment-status"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(questions.offered()))
def test_every_experiment_answers_and_has_its_words(offered, name):
    model, entry = offered["faces"], EXPERIMENTS[name]
    if entry.needs == "concepts" or questions.is_judged(entry):  # of the one whose faces a program draws
        model = offered[models.DRAWN]
    mask = '{"size": [16, 16], "runs": [100, 4, 152]}'
    wanted = settings.Settings("faces", 1, 3, steps=6, switch_to=2, mask=mask)
    wanted, limits = questions.plain_settings("compare-checkpoints", wanted, settings.Limits()), settings.Limits()
    *_, plan = runs.run_stream(runs.plan, model, wanted, limits)
    question = questions.Question(name, entry.min_seeds).estimate(plan, model, wanted)
    rows = []  # of images that went through a network of this kind, the control's and another checkpoint's too
    with each_call(type(model.pipe.unet), lambda sample: rows.append(len(sample))):
        *_, result = runs.run_stream(question, model, wanted, limits)
    foretold = question.seconds / (plan.sampling_seconds / plan.steps) - (entry.once and 1900)  # not of the network
    assert sum(rows) <= 1.3 * foretold, "it would take longer than the page says"
    assert result.settings["seeds"] == list(range(3, 3 + entry.min_seeds))
    labels = result.settings["labels"]
    assert (labels[0], labels[-1]) == (1, 2 if questions.compares_labels(entry) else 1)
    assert result.plot().data
    told = {str(value) for array in result.data.coords.values() for value in np.ravel(array.values)}
    by_itself = name == "critical-window"  # which tells of every attribute without a judge
    assert ("Smiling" in told) == (questions.is_judged(entry) or by_itself)
    text = questions.words(entry)
    assert "control" in text.lower()
    assert ("measuring colours" in text) == questions.is_judged(entry)
    assert entry.source in text


def test_a_control_that_the_page_cannot_have_is_told():
    told = {name: questions.words(EXPERIMENTS[name]) for name in questions.offered()}
    gaussian = {name for name, entry in EXPERIMENTS.items() if entry.nulls[:1] == ("gaussian",)} & set(told)
    assert {name for name, text in told.items() if "where a page may take three" in text} == gaussian
    assert all(f"`diffusers-xai experiment {name}` has it" in told[name] for name in gaussian)
    unjudged = {name for name in told if EXPERIMENTS[name].judged and "measuring colours" not in told[name]}
    assert unjudged == {name for name, text in told.items() if "**Here** the score is the sum over the region" in text}
    assert "**Control:** the same network with random weights" in told["localisation"]  # and the other one elsewhere


def test_attributes_are_told_of_drawn_faces_alone(offered):
    limits, model = settings.Limits(), offered[models.DRAWN]
    wanted = settings.Settings(models.DRAWN, 1, 3, steps=3, switch_to=2)
    wanted = questions.plain_settings("predetermination", wanted, limits)
    *_, result = runs.run_stream(questions.Question("predetermination", 1), model, wanted, limits)
    generator = torch.Generator().manual_seed(3)
    images = model.pipe(1, num_inference_steps=3, generator=generator, output_type="pt").images * 2 - 1
    expected = DrawnFaceJudge().predict(images)[0]
    assert result.data["judged"].isel(seed=0, run=0).values.tolist() == expected.tolist()
    assert offered["faces"].judge is None


def test_checkpoints_of_one_architecture_are_compared_while_nobody_else_uses_them(offered):
    faces, longer = offered["faces"], offered["trained longer"]
    assert (faces.others, offered["plain"].others) == ([longer], [])
    wanted = questions.plain_settings(
        "compare-checkpoints", settings.Settings("faces", 1, 3, steps=4), settings.Limits()
    )
    question = questions.Question("compare-checkpoints", EXPERIMENTS["compare-checkpoints"].min_seeds)
    with longer.lock, pytest.raises(settings.SettingsError, match="trained longer is busy"):
        list(runs.run_stream(question, faces, wanted, settings.Limits()))
    *_, result = runs.run_stream(question, faces, wanted, settings.Limits())
    assert float(result.data["distance"].max()) == 0  # the same weights
    assert not longer.lock.locked()
    with pytest.raises(settings.SettingsError, match="which is alone here"):
        list(runs.run_stream(question, offered["plain"], wanted, settings.Limits()))


def test_the_estimate_is_of_runs_and_of_the_region(monkeypatch):
    plan = SimpleNamespace(sampling_seconds=10.0, steps=100)
    entry = SimpleNamespace(runs=2.0, calls=3.0, once=0.0, region="eyes", needs=None)
    monkeypatch.setitem(questions.EXPERIMENTS, "process", entry)
    wanted = settings.Settings(mask='{"size": [4, 4], "runs": [0, 5, 11]}')
    # Three seeds of two runs of 100 calls, and of three calls for each of five pixels, at 0.1 s.
    model = SimpleNamespace(attributes=["A", "B", "C"])
    assert questions.Question("process", 3).estimate(plan, model, wanted).seconds == pytest.approx(
        3 * (200 + 15) * 0.1
    )
    entry.region, entry.once = None, 50.0  # calls, however many seeds
    assert questions.Question("process", 3).estimate(plan, model, wanted).seconds == pytest.approx(65)
    # Labels that differ in two of three attributes span four.
    entry.once, entry.labels, entry.runs = 0.0, SPANNED_LABELS, lambda labels: 10.0 + labels
    wanted = settings.Settings(label=0b001, switch_to=0b111)
    assert questions.Question("process", 3).estimate(plan, model, wanted).seconds == pytest.approx(3 * 14 * 10)


def test_what_the_page_does_not_ask_is_named_on_it(offered):
    left = set(EXPERIMENTS) - {name for _, name in questions.choices(offered)}
    assert left == {"words", "label-pairs", "few-step-findings"}
    assert all(f"`{name}`" in questions.elsewhere(offered) for name in left)
    alone = {"faces": offered["plain"]}
    assert "compare-checkpoints" not in {name for _, name in questions.choices(alone)}
    assert "`compare-checkpoints`" in questions.elsewhere(alone)


def test_a_long_experiment_waits_for_a_second_press_and_a_longer_one_is_refused(offered):
    limits = settings.Limits(confirm_seconds=0)
    run, _, values = handler(server.build(offered, limits, steps=4, every=2, gradients=False), "experiment")
    ((told,),) = (item.values() for item in run(*values))
    assert "press the button again" in told
    *_, last = run(*values)
    assert any("Done" in str(value) for value in last.values())
    limits = settings.Limits(max_seconds=0)
    run, _, values = handler(server.build(offered, limits, steps=4, every=2, gradients=False), "experiment")
    *_, last = run(*values)
    assert "Stopped after 0 s" in str(last) or "Expected at most 0 s" in str(last)


def test_an_experiment_can_be_cancelled(demo):
    run, visitor, values = handler(demo, "experiment")
    items = run(*values)
    next(items)
    visitor.cancel()
    *_, last = items
    assert "Cancelled" in str(last)


@pytest.mark.parametrize("rows", [1, OPEN_ROWS + 1])
def test_a_table_has_numbers_and_texts_and_is_closed_if_it_is_long(rows):
    table = pd.DataFrame({"layer": ["a<b"] * rows, "chance": [0.1234567] * rows, "q": ["< 0.001"] * rows})
    shown = table_html(table.astype(object))
    assert shown.count("<td>0.123</td>") == shown.count("<td>a&lt;b</td>") == rows
    assert shown.startswith("<details open>" if rows == 1 else "<details>")
    assert "at most one in twenty is false" in shown
