"""A run that learns a teacher's guided predictions, against the guidance computed here."""

import json

import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from diffusers_xai.hub.cards import read_facts
from tests.training.small_runs import all_tensors, make_config, run
from training.data import FaceImages
from training.trainer import Trainer


SCALE = 2.5
STEPS = 50


@pytest.fixture
def teacher(tmp_path, settings):
    torch.manual_seed(11)
    network = ConvNextUNet2DModel(**settings["model"], num_class_embeds=16)
    XAIPipeline(network, DDPMScheduler(**settings["scheduler"])).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def make_trainer(settings, teacher, output, **changes):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=generator)
    data = FaceImages(images, torch.randint(16, (40,), generator=generator))
    changes = {"tracker": None, "distilled_guidance_scale": SCALE, **changes}
    trainer = Trainer(make_config(settings, **changes), data, output)
    network = ConvNextUNet2DModel.from_pretrained(teacher, subfolder="unet")
    trainer.start_from(network.state_dict(), "teacher")
    return trainer, network.eval()


def test_the_first_loss_is_the_distance_that_guidance_makes(tmp_path, settings, teacher):
    trainer, network = make_trainer(settings, teacher, tmp_path / "run", min_snr_gamma=None, label_dropout=0.3)
    (batch,) = trainer.batches.take(0)
    alphas = torch.from_numpy((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).numpy())
    a = alphas[batch.timesteps].float()[:, None, None, None]
    noisy = a.sqrt() * batch.images + (1 - a).sqrt() * batch.noise
    with torch.no_grad():
        asked, unasked = (
            network(noisy, batch.timesteps, labels).sample.double()
            for labels in (batch.labels, torch.full_like(batch.labels, -1))
        )
    # The student is the teacher still, so that it lacks (scale - 1) times what the label changes.
    expected = (SCALE - 1) ** 2 * (asked - unasked).square().mean()
    assert expected > 1e-6
    torch.testing.assert_close(trainer._loss(batch).double(), expected, rtol=1e-4, atol=0)


def test_the_student_comes_near_to_the_guided_teacher(tmp_path, settings, teacher):
    changes = {"max_steps": STEPS, "decay_steps": STEPS, "learning_rate": 0.001, "batch_size": 12}
    changes |= {"label_dropout": 0.2, "min_snr_gamma": None}
    trainer, network = make_trainer(settings, teacher, tmp_path / "run", **changes)
    for _ in range(STEPS):
        trainer.train_step()
    student = trainer.network.eval()
    generator = torch.Generator().manual_seed(5)
    x, t = torch.randn(64, 3, 16, 16, generator=generator), torch.randint(1000, (64,), generator=generator)
    labels, null = torch.arange(64) % 16, torch.full((64,), -1)
    with torch.no_grad():
        asked, unasked = network(x, t, labels).sample, network(x, t, null).sample
        guided = unasked + SCALE * (asked - unasked)
        distance = (student(x, t, labels).sample - guided).square().mean()
        drift = (student(x, t, null).sample - unasked).square().mean()
    at_first = (asked - guided).square().mean()
    assert distance < 0.5 * at_first
    assert drift < 0.5 * at_first  # without a label it stays what it was


def test_an_interrupted_run_keeps_its_teacher(tmp_path, settings, data_folder, teacher):
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps({**settings, "distilled_guidance_scale": SCALE}))
    start = ("--start-from", str(teacher))
    assert run(str(config_file), data_folder, tmp_path / "whole", *start, "--export", str(tmp_path / "student")) == 0
    assert run(str(config_file), data_folder, tmp_path / "parts", *start, "--set", "max_steps=2") == 0
    assert run(str(config_file), data_folder, tmp_path / "parts", "--resume") == 0
    (_, whole), (_, parts) = all_tensors(tmp_path / "whole"), all_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, tensor in whole.items():
        assert torch.equal(tensor, parts[key]), key
    for name, value in ConvNextUNet2DModel.from_pretrained(teacher, subfolder="unet").state_dict().items():
        assert torch.equal(whole[f"teacher/{name}"], value), name
        assert name == "null_label" or not torch.equal(whole[f"model/{name}"], value), name
    assert read_facts(tmp_path / "student")["training"]["target"] == "what its teacher predicts with guidance 2.5"


def test_a_run_without_a_fitting_teacher_is_refused_before_training(
    tmp_path, config_file, data_folder, teacher, settings, capsys
):
    def last_error(*arguments):
        assert run(config_file, data_folder, tmp_path / "run", *arguments) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    guided = ("--set", "distilled_guidance_scale=2.5")
    assert "expected --start-from PIPELINE, the teacher of distilled_guidance_scale, got none" in last_error(*guided)
    noise = json.dumps({**settings["scheduler"], "prediction_type": "epsilon"})
    message = last_error(*guided, "--start-from", str(teacher), "--set", f"scheduler={noise}")
    assert "expected a teacher that predicts 'epsilon'" in message
    assert "got one that predicts 'v_prediction'" in message
    assert "expected distilled_guidance_scale above 0, got 0" in last_error("--set", "distilled_guidance_scale=0")
    unconditional = json.dumps({**settings["model"], "class_attributes": None, "num_class_embeds": None})
    assert "expected distilled_guidance_scale null for an unconditional network" in last_error(
        *guided, "--set", f"model={unconditional}", "--set", "label_dropout=0", "--set", "sample_labels=[]"
    )
