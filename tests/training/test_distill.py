"""Distilling a tiny teacher: what is learned, and that a stopped run goes on as if it had not been stopped."""

import json

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from diffusers_xai import XAIPipeline
from diffusers_xai.experiments.few_steps import few_step_scheduler
from tests.tiny import convnext_unet
from training.checkpoint import list_checkpoints
from training.distill import clean_target, main
from training.teacher_runs import teacher_states


OPTIONS = ["--steps", "2", "--teacher-steps", "8", "--runs", "70", "--batch-size", "16", "--learning-rate", "3e-3"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler(prediction_type="sample")).save_pretrained(folder)
    return folder


def distil(teacher, output, *options):
    return main(["--teacher", str(teacher), "--output", str(output), *OPTIONS, *options])


def weights(output, name="ema"):
    return load_file(list_checkpoints(output)[-1] / f"{name}.safetensors")


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert distil(teacher, folder / "run", "--train-steps", "40", "--export", str(folder / "student")) == 0
    return folder


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_one_step_with_the_target_is_as_far_as_the_teacher_gets_in_several(prediction_type):
    pipe = XAIPipeline(convnext_unet().double(), DDPMScheduler(prediction_type=prediction_type))
    noise = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = teacher_states(pipe, [3, 3, -1], noise, 20, 5)
    assert states.shape == (3, 5, 3, 16, 16)
    by_hand, own = noise, few_step_scheduler(pipe.scheduler)
    own.set_timesteps(20)
    for t in own.timesteps:
        with torch.no_grad():
            output = pipe.unet(by_hand, t, class_labels=torch.tensor([3, 3, -1])).sample
        by_hand = own.step(output, t, by_hand).prev_sample
    torch.testing.assert_close(states[:, -1], by_hand)

    student = few_step_scheduler(DDPMScheduler(prediction_type="sample"))
    student.set_timesteps(4)
    assert student.timesteps.tolist() == [999, 749, 499, 249]
    for k, t in enumerate(student.timesteps):
        target = clean_target(student, states[:, k], states[:, k + 1], torch.full((3,), k))
        after = student.step(target, t, states[:, k]).prev_sample
        torch.testing.assert_close(after, states[:, k + 1], rtol=1e-5, atol=1e-6)


def test_the_student_comes_nearer_to_the_teacher_than_the_teacher_in_as_few_steps(teacher, distilled):
    noise = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    many, few = (XAIPipeline.from_pretrained(path, dtype=torch.float32) for path in (teacher, distilled / "student"))
    assert few.scheduler.config.timestep_spacing == "trailing"
    wanted = teacher_states(many, [1] * 16, noise, 8, 8)[:, -1]
    before = teacher_states(many, [1] * 16, noise, 2, 2)[:, -1]
    images = few([1] * 16, num_inference_steps=2, sample=noise, output_type="pt").images
    learned, own = ((2 * images - 1 - wanted.clamp(-1, 1)).square().mean(), (before - wanted).square().mean())
    assert learned < own / 2
    records = [json.loads(line) for line in (distilled / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40]
    card = json.loads((distilled / "student" / "card.json").read_text())
    measures = {name: value for name, value, _ in card["metrics"]}
    assert set(measures) == {
        "SSIM in 2 steps, the student", "SSIM in 2 steps, the teacher, DDIM",
        "SSIM in 2 steps, the teacher, DPM-Solver++", "SSIM in 2 steps, the teacher, LCM", "SSIM by chance",
    }  # fmt: skip
    assert card["training"]["steps"] == 40


def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(teacher, distilled, tmp_path, monkeypatch):
    from training import distill

    whole, run = weights(distilled / "run"), tmp_path / "run"
    train_step, done = distill.Distiller.train_step, []

    def interrupted(self, *data):
        done.append(self.step)
        self.stop_requested = len(done) == 13
        return train_step(self, *data)

    monkeypatch.setattr(distill.Distiller, "train_step", interrupted)
    assert distil(teacher, run, "--train-steps", "40") == 0
    assert list_checkpoints(run)[-1].name == "checkpoint-00000013"
    (run / "runs-00001.safetensors").unlink()  # as if it had been killed before: the same is made again
    assert distil(teacher, run, "--train-steps", "40", "--resume") == 0
    assert done == list(range(40))
    parts = weights(run)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert distil(teacher, run, "--train-steps", "40", "--resume", "--time-limit", "0.0001") == 0  # nothing is left


def test_what_does_not_fit_is_refused(teacher, distilled, tmp_path, capsys):
    noisy = tmp_path / "epsilon"
    XAIPipeline(convnext_unet(), DDPMScheduler()).save_pretrained(noisy)
    for arguments, message in (
        ((noisy, tmp_path / "a"), "that predicts 'sample' or 'v_prediction'"),
        ((teacher, distilled / "run"), " with a run: add --resume"),
        ((teacher, distilled / "run", "--resume", "--runs", "9"), "expected runs=70 as of the run in"),
        ((tmp_path / "nowhere", tmp_path / "b"), "nowhere"),
    ):
        assert distil(*arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert distil(teacher, tmp_path / "b", "--steps", "3", "--teacher-steps", "9") == 2
    assert "divisors of the 1000 timesteps" in capsys.readouterr().err
    for options in (["--teacher-steps", "9"], ["--steps", "0"], ["--seed", "-1"]):
        with pytest.raises(SystemExit):
            distil(teacher, tmp_path / "c", *options)
    assert not (tmp_path / "b").exists()
