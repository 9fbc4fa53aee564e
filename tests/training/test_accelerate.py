"""Several processes, several forward passes per step, and other numbers than fp32."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_xai import ConvNextUNet2DModel, XAIPipeline
from tests.processes import environment
from tests.training.small_runs import all_tensors, run
from training.train import main


ROOT = Path(__file__).parents[2]
QUIET = ["--set", "tracker=null", "--set", "validate_every=1000", "--set", "sample_every=1000"]


def assert_same_run(expected, got, tolerance):
    (name, a), (other_name, b) = all_tensors(expected), all_tensors(got)
    assert name == other_name
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        torch.testing.assert_close(
            b[key], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_accumulated_gradients_equal_one_batch(tmp_path, config_file, data_folder):
    one_step = ["--set", "max_steps=1", *QUIET]
    run(config_file, data_folder, tmp_path / "one", *one_step, "--set", "batch_size=6")
    parts = ["--set", "batch_size=2", "--set", "gradient_accumulation_steps=3"]
    run(config_file, data_folder, tmp_path / "parts", *one_step, *parts)
    moments = [
        {k: t for k, t in all_tensors(tmp_path / folder)[1].items() if k.endswith("exp_avg")}
        for folder in ("one", "parts")
    ]
    assert moments[0]
    for key, tensor in moments[0].items():
        torch.testing.assert_close(moments[1][key], tensor, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, config_file, data_folder):
    settings = ["--set", "max_steps=3", "--set", "learning_rate=0.0001", "--set", "checkpoint_every=3", *QUIET]
    run(config_file, data_folder, tmp_path / "one", *settings, "--set", "batch_size=6")
    # What launches several GPUs launches several processes of a CPU too, if accelerate is told to leave GPUs alone.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += ["-m", "training.train", "--config", config_file, "--data", data_folder]
    command += ["--output", str(tmp_path / "two"), *settings, "--set", "batch_size=3"]
    variables = environment(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-5)
    images = [json.loads((tmp_path / f / "log.jsonl").read_text().splitlines()[0])["images"] for f in ("one", "two")]
    assert images == [6, 6]


def test_bf16_trains_near_fp32(tmp_path, config_file, data_folder):
    for name in ("no", "bf16"):
        run(config_file, data_folder, tmp_path / name, *QUIET, "--set", f'mixed_precision="{name}"')
    exact, rounded = (all_tensors(tmp_path / name)[1] for name in ("no", "bf16"))
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())
    weights = [key for key in exact if key.startswith("model/")]
    assert any(not torch.equal(exact[key], rounded[key]) for key in weights)
    distance = sum((exact[key] - rounded[key]).square().sum() for key in weights).sqrt()
    size = sum(exact[key].square().sum() for key in weights).sqrt()
    assert distance < 0.1 * size


@pytest.mark.slow
def test_compile_trains_the_same(tmp_path, config_file, data_folder, monkeypatch):
    # The default backend is a matter of torch, and takes a minute and a half for its kernels.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    settings = [*QUIET, "--set", "max_steps=2", "--set", "learning_rate=0.0001"]
    run(config_file, data_folder, tmp_path / "eager", *settings)
    run(config_file, data_folder, tmp_path / "compiled", *settings, "--set", "compile=true")
    assert_same_run(tmp_path / "eager", tmp_path / "compiled", 1e-4)


def test_a_run_starts_from_a_finished_pipeline(tmp_path, config_file, data_folder):
    run(config_file, data_folder, tmp_path / "first", *QUIET)
    pipe = tmp_path / "pipe"
    assert main(["--config", config_file, "--output", str(tmp_path / "first"), "--export", str(pipe)]) == 0
    frozen = ["--set", "max_steps=1", "--set", "learning_rate=1e-30", "--start-from", str(pipe)]
    assert run(config_file, data_folder, tmp_path / "second", *QUIET, *frozen) == 0
    name, tensors = all_tensors(tmp_path / "second")
    exported = load_file(pipe / "unet" / "diffusion_pytorch_model.safetensors")
    assert name == "checkpoint-00000001"
    for key, tensor in exported.items():
        assert torch.equal(tensors[f"model/{key}"], tensor.float())
        assert torch.equal(tensors[f"ema/{key}"], tensor.float())


def test_start_from_refuses_another_network(tmp_path, config_file, data_folder, capsys):
    XAIPipeline(ConvNextUNet2DModel(sample_size=16, block_out_channels=(8, 8)), None).save_pretrained(
        tmp_path / "pipe"
    )
    assert run(config_file, data_folder, tmp_path / "run", "--start-from", str(tmp_path / "pipe")) == 2
    assert "is of another network" in capsys.readouterr().err.splitlines()[-1]
