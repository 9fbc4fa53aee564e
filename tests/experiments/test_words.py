"""Words graded by what they change, against plain runs of a pipeline."""

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from scipy import stats

from diffusers_xai import WordMaps, record
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.nulls import random_weights_inside
from diffusers_xai.prompts import without
from tests.tiny import stable_diffusion
from tests.zoo.encoders import ENCODERS, with_encoder
from tests.zoo.parts import clip_encoder, clip_tokenizer
from tests.zoo.pipelines import ZOO


EXPERIMENT = EXPERIMENTS["words"]
PROMPT = "a red fox, on grass"


@pytest.fixture(scope="module")
def pipe():
    return stable_diffusion()


def final_latents(pipe, prompt, seed, steps=4):
    return pipe(
        prompt, num_inference_steps=steps, guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(seed),
    ).images[0]  # fmt: skip


def covered(maps, changed):
    """By sorting: the share of what changes in the fifth of the places where the map is highest."""
    pairs = sorted(zip(maps.ravel(), range(maps.size), changed.ravel(), strict=True), key=lambda p: (-p[0], p[1]))
    return sum(change for _, _, change in pairs[: round(maps.size / 5)]) / changed.sum()


def test_the_share_is_that_of_plain_runs(pipe):
    sampling = Sampling(seeds=[4, 9], steps=4, guidance_scale=3.0)
    result = EXPERIMENT.run(pipe, sampling, prompt=PROMPT, words=["fox", "red fox"])
    data = result.data
    assert data["covered"].dims == ("seed", "word", "step")
    rows, columns = np.mgrid[:8, :8] + 0.5
    middle = -((rows / 8 - 0.5) ** 2 + (columns / 8 - 0.5) ** 2)
    for seed in sampling.seeds:
        for word, shortened in (("fox", "a red, on grass"), ("red fox", "a, on grass")):
            changed = (final_latents(pipe, PROMPT, seed) - final_latents(pipe, shortened, seed)).abs().mean(0).numpy()
            with record(pipe, [WordMaps(word)]) as recording:
                final_latents(pipe, PROMPT, seed)
            maps = recording.profile["word_maps"].values[:, 0, ..., 0]
            part = data.sel(seed=seed, word=word)
            np.testing.assert_allclose(part["covered"], [covered(m, changed) for m in maps], atol=0.02)
            assert float(part["covered_mean"]) == pytest.approx(covered(maps.mean(0), changed), abs=0.02)
            assert float(part["centre"]) == pytest.approx(covered(middle, changed), abs=1e-4)
            assert float(part["change"]) == pytest.approx(changed.mean(), rel=1e-3)
            if seed == 4:
                np.testing.assert_allclose(data["map"].sel(word=word), maps, atol=1e-4)
    table = EXPERIMENT.table(result).set_index("word")
    rows = table.loc["fox"].set_index("against")
    part = data.sel(word="fox")
    for control, values in (("the middle", part["centre"]), ("random weights", part["null_covered_mean"])):
        assert rows.loc[control, "the model"].startswith(f"{float(part['covered_mean'].mean()):.3f} (")
        excess = (part["covered_mean"] - values).values
        half = stats.t.ppf(0.975, 1) * abs(excess[1] - excess[0]) / 2
        mean = excess.mean()
        assert rows.loc[control, "excess"] == f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"
    p_values = [
        stats.ttest_rel(data["covered_mean"].sel(word=word), data[control].sel(word=word)).pvalue
        for word in ("fox", "red fox")
        for control in ("centre", "null_covered_mean")
    ]
    told = EXPERIMENT.table(result)["q"]
    np.testing.assert_allclose(told[told != ""].astype(float), stats.false_discovery_control(p_values), atol=6e-4)
    assert result.plot().data
    assert result.plot_images().data
    assert data["without"].sizes["image_height"] == 16


def test_the_trained_weights_come_back(pipe):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with random_weights_inside(pipe):
        inside = pipe.unet.state_dict()
        assert not torch.equal(inside["conv_in.weight"], before["conv_in.weight"])
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    with pytest.raises(KeyboardInterrupt), random_weights_inside(pipe):
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    ("name", "embedded", "message"),
    [
        ("deepfloyd-if", True, "a prompt as text, which can be changed, got prompt_embeds"),
        ("deepfloyd-if", False, "a pipeline with a tokenizer, got IFPipeline, where it is None"),
        ("kandinsky-2.2", True, "takes a `prompt`, got KandinskyV22Pipeline"),
    ],
)
def test_embeddings_in_place_of_words_are_refused(name, embedded, message):
    pipe, given = ZOO[name].make(), ZOO[name].call if embedded else {}
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    for experiment, options in (
        ("words", {"prompt": "a red fox", "words": ["fox"]}),
        ("patching", {"prompts": ["a fox", "a cat"]}),
        ("concepts", {"prompt": "a red fox", "concepts": lambda pictures: {}}),
    ):
        with pytest.raises(ValueError, match=f"{experiment}: expected .*{message}"):
            EXPERIMENTS[experiment].run(pipe, Sampling(seeds=[1], steps=2), arguments=given, **options)
    assert not calls


def test_a_text_that_the_network_sees_as_a_whole_has_no_words():
    entry = ZOO["stable-cascade, decoder"]
    pipe, given = entry.make(), {"image_embeddings": entry.call["image_embeddings"], "output_type": "latent"}
    pipe.register_modules(text_encoder=clip_encoder(projection=True), tokenizer=clip_tokenizer())
    with pytest.raises(ValueError, match="tokens that can be followed into StableCascadeUNet"):
        EXPERIMENT.run(pipe, Sampling(seeds=[1], steps=2), prompt="a red fox", words=["fox"], arguments=given)


def test_what_a_pipeline_needs_besides_the_prompt_is_asked_for_by_name():
    class NeedsMore(StableDiffusionPipeline):
        def __call__(self, image_embeddings, prompt=None, *, num_inference_steps=1, **more):
            raise RuntimeError("called")

    pipe = NeedsMore(**stable_diffusion().components, requires_safety_checker=False)
    run = partial(EXPERIMENTS["words"].run, pipe, Sampling(seeds=[1], steps=2), prompt="a red fox", words=["fox"])
    with pytest.raises(ValueError, match="`arguments` with image_embeddings, which NeedsMore needs, got eta"):
        run(arguments={"eta": 0.0})
    with pytest.raises(RuntimeError, match="called"):
        run(arguments={"image_embeddings": 1})


def last_state(pipe, entry, prompt):
    """What the last step of a plain run of a zoo entry ends in: as its scheduler tells, or blended by inpainting."""
    kept = []
    step = pipe.scheduler.step

    def told(*args, **kwargs):
        kept[:] = [step(*args, **kwargs)]
        return kept[0]

    pipe.scheduler.step = told
    try:
        arguments = {"num_inference_steps": entry.steps, "guidance_scale": 2.0} | entry.call | {"prompt": prompt}
        known = inspect.signature(pipe.__call__).parameters
        blends = "Inpaint" in type(pipe).__name__
        arguments |= {"output_type": "latent"} if blends else {}
        given = {name: value for name, value in arguments.items() if name in known}
        output = pipe(**given, generator=torch.manual_seed(1))
    finally:
        del pipe.scheduler.step
    return (output if blends else kept[0])[0].float()


@pytest.mark.slow
def test_every_pipeline_of_the_support_table_that_takes_a_prompt():
    """All that look at words: with an encoder of its own, or one given. Cascade's decoder sees the text as a whole."""
    entries = {name: entry for name, entry in ZOO.items() if entry.words and "prompt" in entry.call}
    entries |= {name: with_encoder(name) for name in ENCODERS}
    assert {name for name, entry in ZOO.items() if entry.words} - entries.keys() == {"stable-cascade, decoder"}
    for name, entry in entries.items():
        pipe, prompt, word = entry.make(), entry.call["prompt"], entry.asked["words"][0]
        prompt = prompt if isinstance(prompt, str) else prompt[0]
        decoders = [pipe.components[part] for part in ("vae", "movq") if part in pipe.components]
        latent = {"output_type": "latent"} if None in decoders else {}
        arguments = {key: value for key, value in entry.call.items() if key != "prompt"} | latent
        entry = replace(entry, call=entry.call | latent)
        sampling = Sampling(seeds=[1], steps=entry.steps, guidance_scale=2.0)
        result = EXPERIMENT.run(pipe, sampling, prompt=prompt, words=[word], arguments=arguments, null="none")
        data = result.data
        changed = last_state(pipe, entry, prompt) - last_state(pipe, entry, without(prompt, word))
        assert float(data["change"][0, 0]) == pytest.approx(float(changed.abs().mean()), rel=1e-3, abs=1e-7), name
        assert float(data["change"][0, 0]) > 0, name
        assert ((data["covered"] >= 0) & (data["covered"] <= 1)).all(), name
        maps = data["map"].isel(word=0).mean("step")
        places = data["changed"].isel(word=0).transpose(*maps.dims)
        assert float(data["covered_mean"][0, 0]) == pytest.approx(covered(maps.values, places.values), abs=1e-3), name
        assert result.plot_images().data
        if "height" not in places.dims:  # of sound, the middle is that of its frames
            middle = -abs(np.arange(len(places)) + 0.5 - len(places) / 2)
            assert float(data["centre"][0, 0]) == pytest.approx(covered(middle, places.values), abs=1e-6), name


def test_the_command_takes_a_prompt(pipe, tmp_path, capsys):
    pipe.save_pretrained(tmp_path / "pipe")
    command = ["experiment", "words", "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]
    command += ["--prompt", PROMPT, "--words", "fox", "--seeds", "1", "--steps", "2"]
    assert main(command) == 0
    result = ExperimentResult.load(tmp_path / "out" / "words")
    assert result.data["word"].values.tolist() == ["fox"]
    assert result.settings["prompt"] == PROMPT
    assert result.settings["guidance_scale"] == 7.5  # the pipeline's own
    assert main(command) == 0
    assert "finished before" in capsys.readouterr().err
