"""Experiments under `accelerate launch`: the numbers of one process, also after kills of one of two, and of all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from tests.processes import environment
from tests.tiny import convnext_unet


LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
SAMPLING = Sampling(labels=[1, 2], seeds=range(16), steps=4, batch_size=8)

# The second process dies by kill -9 in the second of its four batches; in the next launch, the launching process and
# both others do as soon as there is more than was kept.
JUDGE = """
import os, signal
from pathlib import Path
def seen(images):
    kept = [path.name for path in Path("two/predetermination.parquet").glob("part-*.parquet")]
    if "KEPT" in os.environ:
        if len(kept) > int(os.environ["KEPT"]):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    elif os.environ.get("RANK") == "1" and "part-00001.parquet" in kept:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((2, 3))[:, :2].sigmoid()
"""
# A result without parts, which the processes send each other, and then the command.
SCRIPT = f"""
import sys
from accelerate import PartialState
from diffusers_xai import XAIPipeline
from diffusers_xai.cli import main
from diffusers_xai.experiments import EXPERIMENTS, Sampling
pipe = XAIPipeline.from_pretrained(sys.argv[1])
result = EXPERIMENTS["predetermination"].run(pipe, {SAMPLING!r}, null="none")
if PartialState().is_main_process:
    result.save("gathered")
assert PartialState().num_processes == 2
sys.exit(main(sys.argv[2:]))
"""


def kept_files():
    """What there is, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path("two/predetermination.parquet").glob("part-*.parquet")}


@pytest.mark.slow
def test_two_processes_that_are_killed_twice_give_the_result_of_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = XAIPipeline(convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling")), DDPMScheduler())
    pipe.save_pretrained("pipe")
    Path("judge.py").write_text(JUDGE)
    Path("script.py").write_text(SCRIPT)
    command = ["experiment", "predetermination", "--checkpoint", "pipe", "--label", "01", "--other-label", "10"]
    command += ["--null", "none", "--seeds", "16", "--steps", "4", "--batch-size", "8", "--judge", "judge.py:seen"]
    arguments = [sys.executable, *LAUNCH, "script.py", "pipe", *command, "--out", "two"]
    variables = environment(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "Signal 9" in done.stderr, done.stderr[-3000:]
    first = kept_files()
    assert {"part-00001.parquet"} <= set(first)  # the first batch of the one that was killed
    assert len(first) < 6
    arguments = [sys.executable, *LAUNCH, "-m", "diffusers_xai.cli", *command, "--out", "two"]
    again = subprocess.run(arguments, env={**variables, "KEPT": str(len(first))}, capture_output=True, timeout=300)
    assert again.returncode == -signal.SIGKILL
    kept = kept_files()
    assert first.items() < kept.items()
    assert len(kept) < 8
    assert not Path("two/predetermination").exists()

    whole = EXPERIMENTS["predetermination"].run(pipe, SAMPLING, null="none").data
    xr.testing.assert_equal(ExperimentResult.load("gathered").data, whole)
    for out in ("two", "one"):
        assert main([*command, "--out", out]) == 0
    two, one = (ExperimentResult.load(Path(out, "predetermination")).data for out in ("two", "one"))
    xr.testing.assert_identical(two, one)
    xr.testing.assert_allclose(one["ssim"], whole["ssim"], atol=1e-6)
    assert all(Path("two/predetermination.parquet", name).stat().st_mtime_ns == at for name, at in kept.items())
    assert {path.name for path in Path("two").iterdir()} == {path.name for path in Path("one").iterdir()}
