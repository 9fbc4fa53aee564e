"""The tab of words: each question runs on what is typed, and what cannot be asked is refused in words."""

import zipfile

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import PromptSwitch, Samples, WordMaps, XAIPipeline, record
from diffusers_xai.app import models, prompts, runs, server, settings
from diffusers_xai.app.session import Session
from diffusers_xai.app.texts import OTHER_PROMPT, PROMPT
from diffusers_xai.checkpoints.drawn_judge import things
from diffusers_xai.experiments import ExperimentResult
from diffusers_xai.profile.archive import read_archive
from tests.app.handlers import REQUEST, of_page
from tests.tiny import unet_2d


LIMITS = settings.Limits(confirm_seconds=600, max_seconds=600)


@pytest.fixture(scope="module")
def prompted():
    return prompts.load_prompt_model()


@pytest.fixture(scope="module")
def demo(prompted):
    small = models.Model("small", XAIPipeline(unet_2d(), DDPMScheduler()))
    return server.build({"small": small}, LIMITS, prompted=prompted, steps=4, every=2, gradients=False)


def asked(demo, **changes):
    """The handler of the button, with some of its inputs changed by `elem_id`; and what it has told and shown."""
    found = of_page(demo, "word_maps")
    visitor = Session()
    values = [component.value for component in found.inputs[1:]]
    names = [component.elem_id for component in found.inputs[1:]]
    for name, value in {"words-steps": 6, "words-switch-at": 3, **changes}.items():
        values[names.index(name.replace("_", "-"))] = value
    run, *values = values
    *_, last = found.fn(REQUEST, visitor, run, lambda *a, **k: None, *values)
    return visitor, {component.elem_id: value for component, value in last.items()}


def sampled(model, specs, edits=(), steps=6):
    with record(model.pipe, specs, edits) as recording:
        model.pipe(PROMPT, num_inference_steps=steps, guidance_scale=2.0, generator=torch.Generator().manual_seed(7))
    return recording.profile


def test_maps_are_those_of_the_prompt_that_is_typed(demo, prompted, tmp_path):
    typed = PROMPT.replace(" ", "\n", 1)  # the box has two lines
    visitor, shown = asked(demo, words_prompt=typed, words_words="glasses, blond hair")
    told = shown["words-shown"]
    for words in (PROMPT, "seed 7", "6 steps", "guidance 2", prompts.PROMPTED):
        assert words in told
    assert shown["words-status"] == "Done."
    assert shown["words-plot"]["visible"]
    assert shown["words-images"]["visible"]
    profile = read_archive(shown["words-file"]["value"], tmp_path / "profile")
    assert profile["word_maps"]["token"].values.tolist() == ["glasses", "blond hair"]
    expected = sampled(prompted, [WordMaps(["glasses", "blond hair"])])["word_maps"]
    # The server's thread may sum in another order.
    np.testing.assert_allclose(profile["word_maps"].values, expected.values, rtol=1e-4, atol=1e-6)
    assert str(visitor.folder) not in (tmp_path / "profile" / "profile.json").read_text()
    visitor.close()


def test_the_last_step_is_the_latest_to_switch_at(demo):
    found = [function for function in demo.demo.fns.values() if function.name == "steps_changed"]
    (change,) = [function for function in found if function.inputs[1].elem_id == "words-switch-at"]
    update = change.fn(10, 12)
    assert (update["maximum"], update["value"]) == (9, 9)
    _, shown = asked(demo, words_switch=True, words_steps=6, words_switch_at=5)
    assert shown["words-status"] == "Done."


def test_a_switched_run_is_shown_beside_the_other(demo, prompted):
    visitor, shown = asked(demo, words_switch=True)
    assert f"from step 3 on (“changed”) **{OTHER_PROMPT}**" in shown["words-shown"]
    figure = shown["words-images"]["value"].to_json()
    assert all(f'"{row}"' in figure for row in ("intact", "changed", "difference"))
    visitor.close()
    question = prompts.PromptQuestion(prompts.MAPS)
    wanted = prompts.PromptSettings(PROMPT, ("glasses",), 7, 6, 2.0, OTHER_PROMPT, 3)
    *_, run = runs.run_stream(question, prompted, wanted, LIMITS)
    final = Samples(every=6, x0=False, measures=())
    for profile, edits in ((run.profile, []), (run.switched, [PromptSwitch(from_step=3, to=OTHER_PROMPT)])):
        expected = sampled(prompted, [final], edits)["final_sample"]
        np.testing.assert_allclose(profile["final_sample"].values, expected.values, atol=1e-4)
    assert abs(run.profile["final_sample"] - run.switched["final_sample"]).max() > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words_prompt": ""}, "Prompt: expected a text"),
        ({"words_prompt": None}, "Prompt: expected a text"),
        ({"words_prompt": "a" * 151}, "at most 150"),
        ({"words_prompt": "<img src=x onerror=alert(1)>"}, "expected at most 150 letters"),
        ({"words_prompt": "of the"}, "expected 1 to 6 words"),
        ({"words_words": "a, b, c, d, e, f, g"}, "got 7"),
        ({"words_words": "smil"}, "in the prompt, got 'smil'"),
        ({"words_words": "moustache"}, "in the prompt, got 'moustache'"),
        ({"words_prompt": "a photo of an astronaut on a horse"}, "expected at most 24 pieces, got 27"),
        (
            {"words": "patching", "words_other": "a man on the moon with an astronaut and a horse"},
            "The other prompt: expected at most",
        ),
        ({"words_switch": True, "words_other": " "}, "The other prompt: expected a text"),
        ({"words_switch": True, "words_switch_at": 6}, "from 0 to 5"),
        ({"words": "patching", "words_other": PROMPT}, "expected two different prompts"),
        ({"words": "../x"}, "that are offered"),
        ({"words": "words", "words_seeds": 9}, "from 2 to 8"),
        ({"words_steps": 1000}, "from 1 to 100"),
        ({"words_guidance": 0.5}, "from 1 to 20"),
        ({"seed": 2**63}, "Noise seed"),
    ],
)
def test_what_cannot_be_asked_is_told_in_words(demo, changes, message):
    _, shown = asked(demo, **changes)
    assert set(shown) == {"words-status"}
    assert message in shown["words-status"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("words", "smiling"), ("words", "woman"), ("patching", "")])
def test_experiments_of_prompts_answer_within_what_is_foretold(demo, prompted, tmp_path, name, words):
    rows = []
    hook = prompted.pipe.unet.register_forward_pre_hook(lambda network, args: rows.append(len(args[0])))
    try:
        question = prompts.PromptQuestion(name, 2)
        wanted = prompts.PromptSettings(PROMPT, tuple(filter(None, [words])), 7, 4, 1.0, OTHER_PROMPT)
        plan = next(runs.run_stream(question.plan, prompted, wanted, LIMITS))
        planning = sum(rows)
        rows.clear()
        visitor, shown = asked(demo, words=name, words_words=words, words_steps=4, words_guidance=1)
    finally:
        hook.remove()
    foretold = question.estimate(plan, prompted, wanted).seconds / plan.sampling_seconds
    assert 0.7 * foretold <= (sum(rows) - planning) / plan.steps <= 1.1 * foretold
    assert "control:" in shown["words-shown"]
    assert "seeds 7 to 8" in shown["words-shown"]
    zipfile.ZipFile(shown["words-file"]["value"]).extractall(tmp_path)
    result = ExperimentResult.load(tmp_path / name)
    assert result.settings["seeds"] == [7, 8]
    if name == "words":
        assert ("iou" in result.data) == (words == "smiling")  # whose place is known on a drawn face
    else:
        assert result.settings["prompts"] == [PROMPT, OTHER_PROMPT]
        assert set(result.data["of"].values) <= {"pixels", *things(torch.zeros(1, 3, 32, 32))}
    visitor.close()
