"""`diffusers-xai profile --prompt …` on tiny pipelines of diffusers."""

import re
import shlex

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import dummy_torch_and_transformers_objects

from diffusers_xai import DiffusionProfile, cli
from diffusers_xai.cli.prompt_run import PromptRun
from diffusers_xai.measures import mask_from_runs
from tests.zoo.pipelines import ZOO


STEPS = 3


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    for name in ("stable-diffusion", "flux"):
        ZOO[name].make().save_pretrained(place / name)
    return place


@pytest.fixture
def profile(checkpoints, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: exit code, the profile, the lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args, checkpoint="stable-diffusion"):
        words = ["profile", "--checkpoint", checkpoints / checkpoint, *args]
        for option, value in (("--height", 16), ("--width", 16), ("--steps", STEPS)):
            words += [] if option in args else [option, value]
        code = cli.main([str(word) for word in words])
        lines = capsys.readouterr().err.strip().splitlines()
        made = DiffusionProfile.from_pretrained("profile") if code == 0 else None
        return code, made, lines

    return run


def page():
    return open("profile/report.html", encoding="utf-8").read()


def test_a_profile_of_a_prompt(profile, checkpoints):
    code, made, _ = profile("--prompt", "a red fox", "--negative-prompt", "rain", "--guidance-scale", "3", "--seed", 5)
    assert code == 0
    assert {"samples", "x0", "images", "final_image", "attention_outputs", "word_maps"} <= set(made)
    assert made["word_maps"]["token"].values.tolist() == ["red", "fox"]
    told = made.provenance
    assert (told["prompt"], told["negative_prompt"], told["guidance_scale"]) == ("a red fox", "rain", 3.0)
    assert told["seeds"] == [5]

    pipe = StableDiffusionPipeline.from_pretrained(checkpoints / "stable-diffusion")
    generator = torch.Generator().manual_seed(5)
    image = pipe(
        "a red fox", negative_prompt="rain", guidance_scale=3.0, num_inference_steps=STEPS, generator=generator,
        height=16, width=16, output_type="np",
    ).images  # fmt: skip
    recorded = made["final_image"].transpose("sample", "height", "width", "channel").values
    np.testing.assert_allclose(recorded / 255, image, atol=1.01 / 510)

    text = page()
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert {"Where the image looks at each word", "What the network predicts along the way"} <= set(headings)
    assert "a red fox" in text
    assert "three channels of the latent" in text


def test_the_printed_command_and_the_printed_python_make_it_again(profile):
    assert (
        profile("--prompt", "a red fox", "--words", "fox", "--switch", "1:a cat", "--ablate", "mid_block:max")[0] == 0
    )
    first = DiffusionProfile.from_pretrained("profile")
    edited = DiffusionProfile.from_pretrained("profile/edited")
    assert not np.array_equal(first["final_image"].values, edited["final_image"].values)
    text = page()
    assert "the prompt switched to “a cat” from step 1 on" in text
    command, code = re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)
    code = code.replace("&#39;", "'").replace("&#34;", '"').replace("&gt;", ">").replace("&lt;", "<")
    namespace = {}
    exec(code.partition("write_report(out")[0].replace('"profile', '"again'), namespace)  # noqa: S102
    for one, other in ((first, namespace["out"].profile), (edited, namespace["edited"].profile)):
        assert set(one) == set(other)
        assert all(np.array_equal(one[name].values, other[name].values) for name in one)
    words = shlex.split(command.replace("&#39;", "'"))
    assert cli.main([*words[1:-1], "repeated"]) == 0
    repeated = DiffusionProfile.from_pretrained("repeated")
    assert all(np.array_equal(first[name].values, repeated[name].values) for name in first)


def test_a_region_in_pixels_has_gradients_of_the_latents_that_it_covers(profile):
    code, made, _ = profile("--prompt", "a red fox", "--box", 2, 2, 5, 3, "--guidance-scale", 1)
    assert code == 0
    spec = next(spec for spec in made.provenance["record"] if spec["type"] == "GradientEnergy")
    mask = mask_from_runs(spec["mask"])  # of 8x8 latents, each of 2x2 pixels
    assert mask.shape == (8, 8)
    assert np.argwhere(mask).tolist() == [[1, 1], [1, 2]]
    assert "gradient_energy" in made
    assert profile("--prompt", "a red fox", "--overwrite")[1].get("gradient_energy") is None


def test_flux_takes_the_same_options(profile):
    code, made, lines = profile("--prompt", "a red fox", checkpoint="flux")
    assert code == 0, lines
    assert {"images", "word_maps"} <= set(made)


def test_words_that_a_long_prompt_loses_are_left_out_by_name(profile):
    code, made, lines = profile("--prompt", "a red fox and undecipherabilities")
    assert code == 0
    assert made["word_maps"]["token"].values.tolist() == ["red", "fox"]
    assert [line for line in lines if line.startswith("Left out")] == [
        "Left out: the map of 'undecipherabilities', which the text encoder is not given whole"
    ]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "needs a prompt: expected --prompt TEXT"),
        (["--label", "3"], "takes no label: expected --prompt TEXT"),
        (["--prompt", "a red fox", "--words", "dog"], "expected words of the prompt, got 'dog'"),
        (["--prompt", "a red fox", "--ablate", "nowhere:1"], "nowhere"),
        (["--prompt", "a red fox", "--box", "0", "0", "17", "4"], "--box 0 0 17 4"),
        (["--prompt", "a red fox", "--height", "13"], "divisible by"),
    ],
)
def test_bad_requests_are_one_line_before_sampling(profile, monkeypatch, args, text):
    monkeypatch.setattr(PromptRun, "sample", lambda *args: pytest.fail("sampling began"))
    code, _, lines = profile(*args)
    assert code == 2
    assert text in lines[-1]


def test_missing_libraries_are_named(profile, monkeypatch):
    """diffusers puts such a class in the place of each pipeline whose libraries are not installed."""
    monkeypatch.setattr(
        "diffusers.StableDiffusionPipeline", dummy_torch_and_transformers_objects.StableDiffusionPipeline
    )
    code, _, lines = profile("--prompt", "a fox")
    assert (code, lines[-1].split(": ", 2)[2]) == (
        2, "StableDiffusionPipeline needs libraries that are not installed: pip install transformers"
    )  # fmt: skip
