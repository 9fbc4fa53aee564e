"""`diffusers-xai experiment`: what it keeps, and what it refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.checkpoints import FAST, demo_checkpoint
from diffusers_xai.cli import main
from diffusers_xai.cli.experiment_job import jobs_of
from diffusers_xai.cli.parser import make_parser
from diffusers_xai.cli.pipelines import read_network_config, read_scheduler
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult
from tests.tiny import convnext_unet


def test_the_command_keeps_what_is_finished(tmp_path, capsys):
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    base = ["experiment", "--checkpoint", str(tmp_path / "pipe"), "--out", str(tmp_path / "out"), "--seeds", "3"]
    base += ["--label", "01", "--other-label", "10", "--null", "none"]
    base[1:1] = ["all"]
    assert main([*base, "--steps", "10"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    alone = [experiment for experiment in EXPERIMENTS.values() if experiment.needs is None]
    assert all(experiment.title in page for experiment in alone)
    first = ExperimentResult.load(tmp_path / "out" / "ssim-trajectory")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*/profile.json")}
    assert len(stamps) == len(alone)

    assert main([*base, "--steps", "10"]) == 0
    assert capsys.readouterr().err.count("finished before") == len(alone)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())

    base[1] = "ssim-trajectory"
    assert main([*base, "--steps", "5"]) == 2
    out = tmp_path / "out"
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(f"{out / 'ssim-trajectory'}: expected steps 5, got 10: choose another --out, or remove it")
    )
    assert ExperimentResult.load(out / "ssim-trajectory").data.identical(first.data)
    seeds = pd.read_parquet(out / "ssim-trajectory.parquet")
    np.testing.assert_array_equal(np.stack(seeds["ssim"]), first.data["ssim"])
    moments = pd.read_parquet(out / "ssim-trajectory-moments.parquet")
    np.testing.assert_allclose(moments["mean"], first.data["ssim"].mean("seed"), rtol=1e-12)


def test_another_judge_is_another_request(tmp_path, capsys):
    unet = convnext_unet(num_class_embeds=4, class_attributes=("Male", "Smiling"))
    XAIPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    judge = tmp_path / "judge.py"
    judge.write_text("def seen(images):\n    return images.mean((2, 3))[:, :2].sigmoid()\n")
    command = [
        "experiment",
        "predetermination",
        "--checkpoint",
        str(tmp_path / "pipe"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--label", "01", "--other-label", "10", "--null", "none", "--seeds", "2", "--steps", "2"]
    plain = [*command]
    command += ["--judge", f"{judge}:seen"]
    assert main(command) == 0
    stamp = (tmp_path / "out" / "predetermination" / "profile.json").stat().st_mtime_ns
    judge.write_text("def seen(images):\n    return images.mean((2, 3))[:, 1:].sigmoid()\n")
    assert main(command) == 2
    assert "predetermination: expected judge [" in capsys.readouterr().err.splitlines()[-1]
    assert main(plain) == 0  # what was judged is kept, and read without the judge
    assert "seen by the judge" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "predetermination" / "profile.json").stat().st_mtime_ns == stamp


def test_the_published_findings_are_finished_for_the_command_of_their_page():
    """It draws and tests what is kept, whatever became of the judge's code; nothing is sampled."""
    docs = Path(__file__).parents[2] / "docs"
    command = "diffusers-xai experiment findings --out docs/findings --seeds 30 --format png"
    assert f"\n{command}\n" in (docs / "findings.md").read_text(encoding="utf-8")
    args = make_parser().parse_args(command.split()[1:])
    args.out, args.checkpoint = docs / "findings", demo_checkpoint(FAST)
    jobs = jobs_of(args, read_network_config(args), read_scheduler(args), [])
    assert [job.name for job in jobs if job.finished is None] == []
    assert len(jobs) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["predetermination", "--other-label", "0011"], "--other-label: expected another label than --label"),
        (["ablation", "--seeds", "0"], "expected an integer in 1..1000000"),
        (["ablation", "--checkpoint", "./nowhere"], "no checkpoint at ./nowhere"),
    ],
)
def test_bad_commands_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "experiments").exists()
