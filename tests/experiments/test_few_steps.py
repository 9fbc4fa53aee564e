"""Few-step ways against runs by hand and against the experiments that they repeat."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from tests.experiments.runs import SEEDS, ssim
from tests.tiny import convnext_unet


def trailing(solver, **options):
    return solver.from_config(DDPMScheduler().config, timestep_spacing="trailing", clip_sample=False, **options)


def image(pipe, seed, steps):
    generator = torch.Generator().manual_seed(seed)
    output = pipe(3, num_inference_steps=steps, generator=generator, output_type="pt")
    return 2 * output.images[0].double().numpy() - 1


def test_each_way_is_the_run_that_it_names():
    pipe = XAIPipeline(convnext_unet(sample_size=8), DDPMScheduler())
    student = XAIPipeline(convnext_unet(sample_size=8, block_out_channels=(8, 8)), trailing(DDIMScheduler))
    sampling = Sampling([3, 12], SEEDS, 8, batch_size=12)
    result = EXPERIMENTS["few-steps"].run(pipe, sampling, counts=[3], others=[student], student_steps=2, null=pipe)
    data = result.data
    ways = ["DDIM, 8 steps", "DDIM, 3 steps", "DPM-Solver++, 3 steps", "LCM, 3 steps", "student, 2 steps"]
    assert data["way"].values.tolist() == ways
    by_hand = {
        ways[0]: (XAIPipeline(pipe.unet, trailing(DDIMScheduler)), 8),
        ways[1]: (XAIPipeline(pipe.unet, trailing(DDIMScheduler)), 3),
        ways[2]: (XAIPipeline(pipe.unet, trailing(DPMSolverMultistepScheduler)), 3),
        ways[4]: (student, 2),
    }
    images = {way: [image(which, seed, steps) for seed in SEEDS] for way, (which, steps) in by_hand.items()}
    for way, found in images.items():
        for k, seed in enumerate(SEEDS):
            part = data.sel(way=way, seed=seed)
            assert float(part["ssim"]) == pytest.approx(ssim(found[k], images[ways[0]][k]), abs=1e-3)
            assert float(part["chance"]) == pytest.approx(ssim(found[k], images[ways[0]][k - 1]), abs=1e-3)
            # By DDIM the last prediction is the image.
            if "DDIM" in way or "student" in way:
                assert float(part["shown"].dropna("step")[-1]) > (0.999 if "8" not in way else 0.5)
        np.testing.assert_allclose(data["final"].sel(way=way), found[0], atol=1e-3)
    assert data["timestep"].sel(way="student, 2 steps").values.tolist()[:2] == [999, 499]
    assert np.isnan(data["timestep"].sel(way="student, 2 steps").values[2:]).all()
    for way in ways[:3]:
        which, steps = by_hand[way]
        alone = EXPERIMENTS["predetermination"].run(
            which, Sampling([3, 12], SEEDS, steps, batch_size=12), switches=steps, null="none"
        )
        np.testing.assert_allclose(data["index"].sel(way=way), alone.data["index"], atol=1e-3)
    # Its own control.
    np.testing.assert_array_equal(data["null_index"][:, :4], data["index"][:, :4])
    assert data["null_ssim"].sel(way="student, 2 steps").isnull().all()
    for figure in (result.plot(), result.plot_images()):
        assert figure.data
    table = EXPERIMENTS["few-steps"].table(result).fillna("")
    student_row = table[(table["way"] == "student, 2 steps") & table[""].str.startswith("SSIM")].iloc[0]
    assert student_row["the model"].startswith(f"{float(data['ssim'].sel(way='student, 2 steps').mean()):.3f} (")
    assert student_row["control"] == ""


def test_what_does_not_fit_is_refused():
    pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
    for seeds, options, message in (
        ([1], {}, "few-steps: expected at least 2 seeds"),
        ([1, 2], {"counts": [1]}, "counts from 2 to below 8 steps"),
        ([1, 2], {"counts": [8]}, "counts from 2 to below 8 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            EXPERIMENTS["few-steps"].run(pipe, Sampling([3, 12], seeds, 8), null="none", **options)


def test_the_command_takes_students(tmp_path, capsys):
    for name, widths in (("teacher", (8, 16)), ("student", (8, 8))):
        unet = convnext_unet(sample_size=8, num_class_embeds=4, class_attributes=None, block_out_channels=widths)
        XAIPipeline(unet, trailing(DDIMScheduler)).save_pretrained(tmp_path / name)
    command = ["experiment", "few-steps", str(tmp_path / "student"), "--checkpoint", str(tmp_path / "teacher")]
    command += ["--label", "1", "--other-label", "2", "--null", "none", "--seeds", "2", "--steps", "5"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    ways = ExperimentResult.load(tmp_path / "out" / "few-steps").data["way"].values.tolist()
    assert ways[0] == "DDIM, 5 steps"
    assert ways[-1] == "student, 4 steps"
