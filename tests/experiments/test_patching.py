"""Which layer carries the label, on networks in which that is known."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from diffusers_xai import XAIPipeline
from diffusers_xai.analysis import verdict_difference
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.sampling import OTHER_NOISE
from diffusers_xai.measures.masks import mask_from_runs
from diffusers_xai.pipelines.patch_sweep import PatchSite, patch_sweep
from tests.experiments.runs import states
from tests.planted import OneBlockHearsTheLabel
from tests.tiny import convnext_unet, stable_diffusion


NAME, SEEDS, STEPS = "patching", [4, 9, 2], 6


def make(unet):
    return XAIPipeline(unet, DDPMScheduler(clip_sample=False))


def test_only_the_block_that_hears_the_label_lights_up():
    pipe = make(OneBlockHearsTheLabel(class_attributes=("Lit",)).double())

    def judge(images):
        return (images[:, 1].mean((1, 2)) < 0).float()[:, None]

    layers = [f"blocks.{i}" for i in range(3)]
    result = EXPERIMENTS[NAME].run(
        pipe, Sampling([0, 1], range(6), STEPS), layers=layers, bands=2, judge=judge, null="same-label"
    )
    data = result.data
    assert data["of"].values.tolist() == ["pixels", "Lit"]
    assert data["start"].values.tolist() == [0, 3, 0]
    assert data["stop"].values.tolist() == [3, 6, 6]
    pixels = data["effect"].sel(of="pixels")
    np.testing.assert_allclose(pixels.sel(layer="blocks.1", band=2), 1, atol=1e-6)
    np.testing.assert_allclose(pixels.sel(layer=["blocks.0", "blocks.2"]), 0, atol=1e-6)
    assert (abs(pixels.sel(layer="blocks.1", band=[0, 1])) > 0.05).all()
    # The judge sees a difference in some seeds only; in those the attribute comes over as a whole.
    lit = data["effect"].sel(of="Lit")
    final = patch_sweep(pipe, 0, 1, range(6), [PatchSite("blocks.0", range(1))], num_inference_steps=STEPS)
    seen = [judge(run.clamp(-1, 1))[:, 0] for run in final[:2]]
    differs = (seen[0] != seen[1]).numpy()
    assert differs.sum() > 0
    assert (lit.isnull().all(["layer", "band"]).values == ~differs).all()
    assert (lit.sel(layer="blocks.1", band=2).values[differs] == 1).all()
    assert (lit.sel(layer="blocks.0").values[differs] == 0).all()
    # A run of the same label has nothing of the other one's to give.
    assert (data["null_effect"].sel(of="Lit", layer="blocks.0").dropna("seed") == 0).all()
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS[NAME].table(result).set_index(["layer", "from t"])
    assert (
        table["the model: image"]["blocks.1", "all"] == "1.000 (1.000 to 1.000)"
    )  # a measured number, the same in every seed
    count = int(differs.sum())
    low = 0.025 ** (1 / count)  # of verdicts that are all yes, by Clopper and Pearson
    assert table["the model: lit"]["blocks.1", "all"] == f"1.000 ({low:.3f} to 1.000)"
    null = int(data["null_effect"].sel(of="Lit", layer="blocks.1", band=2).sum())
    found = verdict_difference(count - null, 0, count)  # no, where only the control says yes
    assert table["excess: lit"]["blocks.1", "all"] == f"{1 - null / count:.3f} ({found[0]:.3f} to {found[1]:.3f})"
    assert float(table["q: lit"]["blocks.1", "all"]) >= round(found[2], 3)


def test_the_effect_by_hand_within_a_mask_and_the_default_layers(mask):
    pipe = make(convnext_unet())
    data = EXPERIMENTS[NAME].run(pipe, Sampling([3, 12], SEEDS, STEPS), bands=1, mask=mask, null="none").data
    assert set(data["layer"].values) == {
        "init_conv",
        "downs.0.2",
        "downs.1.2",
        "mid_block",
        "ups.0.2",
        "final_conv",
    }
    site = PatchSite("mid_block", range(STEPS))
    source, base, patched = patch_sweep(pipe, 3, 12, SEEDS, [site], mask=mask, num_inference_steps=STEPS)
    error = [((run - source) ** 2)[:, :, mask].mean((1, 2)) for run in (base, patched)]
    np.testing.assert_allclose(
        data["effect"].sel(layer="mid_block").squeeze(), 1 - error[1] / error[0], rtol=1e-3, atol=1e-3
    )


def test_a_judge_and_a_band_that_do_not_fit_are_refused():
    pipe = make(convnext_unet())
    for options, message in (
        ({"bands": 7}, r"bands in 1\.\.6, got 7"),
        ({"between": "prompts"}, "between in"),
        ({"between": "seeds"}, r"one label between seeds, got \[3, 12\]"),
        ({"branch": "uncond"}, r"`branch` in \('cond',\) or None, got 'uncond'"),
        ({"judge": lambda images: torch.zeros(len(images), 3)}, r"a judge of 4 attributes .*, got shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS[NAME].run(pipe, Sampling([3, 12], [1], STEPS), layers=["conv_in"], null="none", **options)


def test_the_command_takes_a_judge(tmp_path, capsys):
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    judge = tmp_path / "judge.py"
    judge.write_text("def dark(images):\n    return (images.mean((2, 3))[:, :2] < 0).float()\n")
    base = ["--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--seeds", "2", "--steps", "4"]
    base += ["--null", "none", "--judge"]
    assert main(["experiment", NAME, *base, f"{judge}:dark"]) == 0
    assert ExperimentResult.load(tmp_path / "out" / NAME).data["of"].values.tolist() == ["pixels", "Smiling"]
    capsys.readouterr()
    assert main(["experiment", "ablation", *base, f"{judge}:dark"]) == 2
    assert "ablation takes no judge" in capsys.readouterr().err
    mask = tmp_path / "mask.png"
    Image.new("L", (16, 16), 255).save(mask)
    assert main(["experiment", "hierarchy", *base[:-1], "--mask", str(mask)]) == 2
    assert "hierarchy takes no region" in capsys.readouterr().err


ROWS = {"uncond": slice(0, 1), "cond": slice(1, 2), "all": slice(0, 2)}  # of the doubled batch


def by_hook(run, module, replaced):
    """What a plain run ends in with the outputs of a module as `replaced(step, output)` says, and its own outputs."""
    outputs = []

    def hook(module, args, output):
        outputs.append(output.clone())
        return replaced(len(outputs) - 1, output.clone())

    handle = module.register_forward_hook(hook)
    try:
        return run(), outputs
    finally:
        handle.remove()


def put_in(outputs, rows, inside):
    """Puts rows of other outputs (row, channel, height, width) in, where `inside`."""

    def replaced(step, output):
        output[rows] = torch.where(inside, outputs[step][rows], output[rows])
        return output

    return replaced


def check_by_hooks(data, layer, run, branch, inside):
    """Compares the first cell with plain runs in which a hook puts a layer's rows of a branch in; returns the runs."""
    source, outputs = by_hook(lambda: run(4 + OTHER_NOISE), layer, lambda step, output: output)
    patched, _ = by_hook(lambda: run(4), layer, put_in(outputs, ROWS[branch], inside))
    base = run(4)
    np.testing.assert_allclose(data["whole"], torch.stack([source, base]), atol=1e-6)
    np.testing.assert_allclose(data["images"].squeeze(), patched, atol=1e-6)
    assert (patched - base).abs().max() > 1e-3
    return source, base, patched


def each_branch(data, branch):
    """The branches that are patched, and the data of each."""
    if branch != "each":
        assert "branch" not in data.dims
        return [(branch, data)]
    assert data["branch"].values.tolist() == list(ROWS)
    return [(name, data.sel(branch=name)) for name in ROWS]


@pytest.fixture
def mask():
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:12, 4:10] = True
    return mask


@pytest.mark.parametrize("branch", ["uncond", "cond", "each"])
def test_between_seeds_a_branch_is_patched_as_by_a_hook_on_the_doubled_batch(branch, mask):
    pipe = make(convnext_unet().double())
    sampling = Sampling([3], [4], 3, guidance_scale=2.0)
    options = {"layers": ["conv_in"], "bands": 1, "null": "none", "between": "seeds"}
    data = EXPERIMENTS[NAME].run(pipe, sampling, branch=branch, mask=mask, **options).data

    def run(seed):
        return states(pipe, 3, seed, 3, guidance_scale=2.0)[-1]

    inside = torch.from_numpy(mask)
    for name, part in each_branch(data, branch):
        source, base, patched = check_by_hooks(part, pipe.unet.conv_in, run, name, inside)
        error = [((image - source) ** 2)[:, inside].mean() for image in (base, patched)]
        np.testing.assert_allclose(part["effect"].squeeze(), 1 - error[1] / error[0], atol=1e-5)


@pytest.mark.parametrize("labels", [[3], []])
def test_the_answer_of_a_network_that_predicts_the_image_is_the_other_seeds_image(labels, mask):
    unet = convnext_unet() if labels else convnext_unet(num_class_embeds=None)
    pipe = XAIPipeline(unet, DDIMScheduler(prediction_type="sample", clip_sample=False))
    sampling = Sampling(labels, SEEDS[:2], 3)
    options = {"layers": ["conv_out"], "bands": 3, "between": "seeds"}
    result = EXPERIMENTS[NAME].run(pipe, sampling, **options)
    for band in (2, 3):  # the last step makes the image, alone and after all the others
        part = result.data.isel(band=band)
        np.testing.assert_array_equal(part["images"][0], part["whole"][0])
        assert (part["effect"] == 1).all()
        assert (part["null_effect"] < 0.9).all()  # a third seed is not the source
    assert result.plot_images().data
    masked = EXPERIMENTS[NAME].run(pipe, sampling, mask=mask, **options, null="none").data.isel(band=2)
    image, (source, base) = masked["images"].values[0], masked["whole"].values
    np.testing.assert_array_equal(image[:, mask], source[:, mask])
    np.testing.assert_allclose(image[:, ~mask], base[:, ~mask], atol=1e-5)  # by a call of other rows


def test_between_seeds_the_noise_itself_stays():
    """DDIM's step is linear in state and answer, so two runs of equal answers differ by their noise, as it grows."""
    scheduler = DDIMScheduler(clip_sample=False, beta_end=0.002)
    pipe = XAIPipeline(convnext_unet().double(), scheduler)
    data = (
        EXPERIMENTS[NAME]
        .run(pipe, Sampling([3], [4], 3), layers=["conv_out"], bands=1, between="seeds", null="none")
        .data
    )
    own, other = (
        torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (4, 4 + OTHER_NOISE)
    )
    scheduler.set_timesteps(3)
    grown = scheduler.alphas_cumprod[scheduler.timesteps[0]] ** -0.5
    expected = data["whole"].values[0] + (grown * (own - other)).numpy()
    np.testing.assert_allclose(data["images"].squeeze(), expected, atol=1e-5)


@pytest.mark.parametrize("branch", ["uncond", "cond", "each"])
def test_of_prompts_too(branch, mask):
    pipe = stable_diffusion().to(torch.float64)
    sampling = Sampling(seeds=[4], steps=3, guidance_scale=2.0)
    options = {"layers": ["conv_in"], "bands": 1, "null": "none", "between": "seeds"}
    data = EXPERIMENTS[NAME].run(pipe, sampling, prompts=["a fox"], branch=branch, mask=mask, **options).data

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        output = pipe("a fox", num_inference_steps=3, guidance_scale=2.0, generator=generator, output_type="pt")
        return output.images[0] * 2 - 1

    for name, part in each_branch(data, branch):
        check_by_hooks(part, pipe.unet.conv_in, run, name, torch.from_numpy(mask[::2, ::2]))  # of the latents


def test_of_each_branch_all_of_them_are_the_source_and_the_control_goes_along():
    pipe = make(convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling")))
    sampling = Sampling([0, 3], SEEDS, 4, guidance_scale=3.0)

    def judge(images):
        return (images.mean((2, 3))[:, :2] < 0).float()

    options = {"layers": ["mid_block", "conv_out"], "bands": 2, "judge": judge}
    result = EXPERIMENTS[NAME].run(pipe, sampling, branch="each", max_rows=6, **options)
    data = result.data
    assert data["effect"].dims == data["null_effect"].dims == ("seed", "branch", "layer", "band", "of")
    whole = data.sel(layer="final_conv", branch="all").isel(band=2)
    np.testing.assert_array_equal(whole["images"], data["whole"].sel(run=0))
    assert (whole["effect"].sel(of="pixels") == 1).all()
    # With the source's conditional answers the states are the source's, and so the unconditional answers, too, which
    # hear no label. These alone leave the base's label where it is.
    alone = data["effect"].sel(layer="final_conv", of="pixels").isel(band=2)
    np.testing.assert_allclose(alone.sel(branch="cond"), 1, atol=1e-6)
    assert (alone.sel(branch="uncond") < 0.1).all()
    for name, branch in (("uncond", "uncond"), ("cond", "cond"), ("all", None)):
        single = EXPERIMENTS[NAME].run(pipe, sampling, branch=branch, **options).data
        for values in ("effect", "null_effect", "images"):
            np.testing.assert_allclose(data[values].sel(branch=name), single[values], rtol=1e-3, atol=1e-4)
    table = EXPERIMENTS[NAME].table(result)
    assert table["branch"].tolist() == [
        name for name in ("unconditional", "conditional", "all branches") for _ in range(6)
    ]
    shown = [trace.z for trace in result.plot().data]
    assert len(shown) == 2 * 3 * data.sizes["of"]
    np.testing.assert_allclose(shown[0], data["effect"].sel(branch="uncond", of="pixels").mean("seed"))
    assert len(result.plot_images().data) == 2 + 2 * 3
    assert result.settings["branch"] == "each"


def test_each_branch_of_a_run_without_guidance_is_refused():
    for pipe, sampling, options in (
        (make(convnext_unet()), Sampling([3, 12], [1], STEPS), {}),
        (stable_diffusion(), Sampling(seeds=[1], steps=4), {"prompts": ["a", "b"]}),
    ):
        with pytest.raises(ValueError, match="a run with guidance for branch='each', got one with cond alone"):
            EXPERIMENTS[NAME].run(pipe, sampling, branch="each", **options)


@pytest.mark.parametrize("name", ["pixels", "Image"])
def test_what_is_told_may_not_have_the_name_of_the_experiments_own_measure(name):
    def judge(images):
        return {name: torch.ones(len(images))}

    options = {"prompts": ["a", "b"], "layers": ["conv_in"], "bands": 1}
    with pytest.raises(ValueError, match=f"no other measure has, got '{name}', which reads like 'pixels'"):
        EXPERIMENTS[NAME].run(stable_diffusion(), Sampling(seeds=[1], steps=1), judge=judge, **options)
    pipe = make(convnext_unet(num_class_embeds=2, class_attributes=(name,)))
    with pytest.raises(ValueError, match=f"got '{name}'"):
        EXPERIMENTS[NAME].run(pipe, Sampling([0, 1], [1], 4), judge=lambda images: torch.ones(len(images), 1))


def test_the_command_takes_them(tmp_path, mask, capsys):
    pipe = make(convnext_unet())
    pipe.save_pretrained(tmp_path / "pipe")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    command = ["experiment", NAME, "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]
    command += ["--seeds", "1", "--steps", "4", "--null", "none", "--label", "3"]
    given = ["--between", "seeds", "--branch", "uncond", "--mask", str(tmp_path / "mask.png")]
    assert main([*command, *given, "--guidance-scale", "2"]) == 0
    result = ExperimentResult.load(tmp_path / "out" / NAME)
    sampling = Sampling([3], [0], 4, guidance_scale=2.0)
    expected = EXPERIMENTS[NAME].run(pipe, sampling, between="seeds", branch="uncond", mask=mask, null="none")
    np.testing.assert_allclose(result.data["effect"], expected.data["effect"], atol=1e-6)
    assert {result.settings[key] for key in ("between", "branch")} == {"seeds", "uncond"}
    assert mask_from_runs(result.settings["mask"]).tolist() == mask.tolist()
    capsys.readouterr()
    assert main([*command, *given, "--guidance-scale", "3"]) == 2  # what is there was made otherwise
    assert "guidance_scale" in capsys.readouterr().err


def test_between_prompts_the_layer_that_hears_them_lights_up():
    pipe = stable_diffusion()
    pipe.to(torch.float64)
    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            torch.nn.init.zeros_(module.bias)
            torch.nn.init.normal_(module.weight, std=1.0 if name.startswith("mid_block") else 0.0)

    def judge(images):
        red = images[:, 0].mean((1, 2))
        return {"always": torch.ones(len(images)), "redder": (red > red[0]).float()}

    layers = ["down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.1"]
    sampling = Sampling(seeds=[4, 9], steps=3, guidance_scale=2.0)
    result = EXPERIMENTS[NAME].run(
        pipe, sampling, prompts=["a red fox", "a cat, on ice"], layers=layers, bands=3, null="same-label"
    )
    data = result.data
    assert data["of"].values.tolist() == ["pixels"]
    assert result.settings["prompts"] == ["a red fox", "a cat, on ice"]
    pixels = data["effect"].sel(of="pixels")
    np.testing.assert_allclose(pixels.sel(layer=layers[1], band=3), 1, atol=1e-6)
    # In the first step all runs have the same state: only the prompt can differ.
    np.testing.assert_allclose(pixels.sel(layer=layers[0], band=0), 0, atol=1e-6)
    assert (abs(pixels.sel(layer=layers[1:], band=0)) > 1e-3).all()
    assert result.plot().data
    assert result.plot_images().data
    # A judge's names that tell the runs apart in too few seeds are left out.
    told = EXPERIMENTS[NAME].run(
        pipe, sampling, prompts=["a red fox", "a cat, on ice"], layers=layers[:1], bands=1, judge=judge, null="none"
    )
    assert "always" not in told.data["of"]


@pytest.mark.parametrize("prompts", [["a fox"], ["a fox", "a fox"], ["a", "b", "c"]])
def test_other_than_two_different_prompts_are_refused(prompts):
    with pytest.raises(ValueError, match="two different prompts"):
        EXPERIMENTS[NAME].run(stable_diffusion(), Sampling(seeds=[1], steps=2), prompts=prompts)


def test_the_command_takes_prompts(tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "pipe")
    command = ["experiment", NAME, "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]
    command += ["--prompt", "a red fox", "--seeds", "2", "--steps", "4", "--null", "none"]
    assert main([*command, "--other-prompt", "a cat"]) == 0
    result = ExperimentResult.load(tmp_path / "out" / NAME)
    assert result.settings["guidance_scale"] == 7.5
    assert result.data["band"].size == 5
    command[command.index(str(tmp_path / "out"))] = str(tmp_path / "seeds")
    assert main([*command, "--between", "seeds", "--branch", "cond"]) == 0
    settings = ExperimentResult.load(tmp_path / "seeds" / NAME).settings
    assert (settings["prompts"], settings["between"], settings["branch"]) == (["a red fox"], "seeds", "cond")
