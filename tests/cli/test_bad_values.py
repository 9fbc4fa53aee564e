"""Values that no option can take: one line, exit code 2, nothing left, nothing loaded."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_xai import XAIPipeline, cli
from diffusers_xai.cli.parser import make_parser
from tests.cli import hostile
from tests.processes import environment


# What a command needs beside the option that is wrong.
VALID = {
    "profile": {},
    "experiment": {"name": ["ablation"]},
    "audit": {},
    "app": {},
    "push": {"repo": ["user/name"], "checkpoint": ["--checkpoint=tiny"]},
    "completion": {"shell": ["bash"]},
}
# What belongs together or apart, whatever the values.
TOGETHER = [
    ["profile", "--revision", "main"],
    ["profile", "--checkpoint", "tiny", "--revision", "main"],
    ["profile", "--seed", "1", "--seed", "2"],
    ["profile", "--out", "a", "--out", "b"],
    ["profile", "--switch", "500:0111", "--switch", "500:0001"],
    ["profile", "--switch", "500:0011"],
    ["profile", "--switch", "5000:0111"],
    ["profile", "--steps", "1001"],
    ["profile", "--steps", "20", "--every", "21"],
    ["profile", "--label", "Male,Male"],
    ["profile", "--device", "mps:0"],
    ["audit", "--timesteps", "500", "500"],
    *([*command, "--format", "png", "png"] for command in (["experiment", "ablation"], ["audit"])),
    ["profile", "--checkpoint", "deep"],
    *(["profile", "--checkpoint", name] for name in ("negative", "endless", "worded")),
    *(["profile", "--mask", name] for name in ("pipe", "loop", "vector.svg", "/dev/zero")),
    ["push", "user/name", "--checkpoint", "tiny", "--sample-grid", "pipe"],
    ["app", "--checkpoint", "text"],
    ["profile", "--mask", "white.png", "--box", "1", "1", "4", "4"],
    ["profile", "--box", "1", "1", "4", "65"],
    ["profile", "--mask", "small.png"],
    *([*command, "--out", out] for command in (["profile"], ["experiment", "ablation"], ["audit"]) for out in (
        "notes.txt", "notes.txt/sub", "folder", "hidden", "damaged", "link", "x" * 300, ".", "/", "/proc/new",
    )),
    ["audit", "--out", "audited"],
    ["profile", "--out", "folder", "--overwrite"],
    *(["profile", "--label", label] for label in (
        "16", "-2", "011", "00011", "11", "110", "0012", "007", "1.0", "Smilling", "Smiling,", "Smiling;Male",
        "smiling", "3,Male", "0b11", "९", "9" * 40,
    )),
    *(["profile", "--switch", f"500:{label}"] for label in ("16", "011", "Smilling", "1e1", "0b1")),
    ["experiment", "ablation", "--revision", "main"],
    ["experiment", "all", "tiny"],
    ["experiment", "concepts"],
    ["experiment", "concepts", "--prompt", "a fox"],
    ["experiment", "words", "--checkpoint", "tiny"],
    ["experiment", "words", "--checkpoint", "tiny", "--prompt", "a fox", "--words", "cat"],
    ["experiment", "words", "--checkpoint", "lfw-32", "--prompt", "a fox"],
    ["experiment", "ablation", "--prompt", "a fox"],
    ["experiment", "patching", "--checkpoint", "text", "--prompt", "a fox"],
    ["experiment", "patching", "--checkpoint", "text", "--prompt", "a fox", "--other-prompt", "a fox"],
    ["experiment", "patching", "--checkpoint", "text", "--other-prompt", "a fox"],
    ["experiment", "patching", "--checkpoint", "lfw-32", "--prompt", "a fox", "--other-prompt", "a cat"],
    ["experiment", "patching", "--branch", "uncond"],
    ["experiment", "patching", "--branch", "both", "--guidance-scale", "2"],
    ["experiment", "patching", "--mask", "small.png"],
    ["experiment", "patching", "--between", "seeds", "--other-label", "0100"],
    ["experiment", "patching", "--between", "seeds", "--checkpoint", "text", "--other-prompt", "a fox"],
    ["experiment", "patching", "--between", "seeds", "--checkpoint", "text", "--prompt", "a", "--other-prompt", "b"],
    ["experiment", "all", "--between", "seeds"],
    ["experiment", "findings", "--branch", "cond"],
    ["experiment", "hierarchy", "--between", "seeds"],
    ["experiment", "hierarchy", "--branch", "cond"],
    ["experiment", "hierarchy", "--prompt", "a fox", "--other-prompt", "a cat"],
    ["experiment", "words", "--checkpoint", "text", "--prompt", "a fox", "--other-prompt", "a cat"],
    ["experiment", "emergence", "--seeds", "2"],
    ["experiment", "findings", "--seeds", "2"],
    ["experiment", "compare-checkpoints"],
    ["experiment", "compare-checkpoints", "tiny"],
    ["experiment", "compare-checkpoints", "tiny", "tiny"],
    ["experiment", "compare-checkpoints", "nowhere", "nowhere"],
    ["experiment", "compare-checkpoints", "tiny", "tiny", "--checkpoint", "tiny"],
    ["experiment", "compare-checkpoints", "user/a", "user/b", "--revision", "main"],
    ["experiment", "compare-checkpoints", "--checkpoint", "tiny"],
    ["push", "user/name", "--checkpoint", "tiny", "--sample-grid", "white.png", "--no-sample-grid"],
    ["push", "user/name"],
    ["profile", "--prompt", "a red fox"],
    ["profile", "--negative-prompt", "rain"],
    ["profile", "--words", "fox"],
    ["profile", "--height", "64"],
    ["profile", "--width", "64"],
    ["profile", "--dtype", "float16"],
    ["profile", "--checkpoint", "text"],
    ["profile", "--checkpoint", "text", "--prompt", "a fox", "--label", "3"],
    ["profile", "--checkpoint", "text", "--prompt", "a fox", "--prompt", "a cat"],
    ["profile", "--checkpoint", "text", "--label", "3"],
    ["profile", "--checkpoint", "text", "--prompt", "a fox", "--steps", "1001"],
    ["profile", "--checkpoint", "text", "--prompt", "a fox", "--steps", "5", "--switch", "5:a cat"],
    ["profile", "--checkpoint", "flow", "--prompt", "a fox", "--scheduler", "ddim"],
    ["profile", "--checkpoint", "image", "--prompt", "a fox"],
    ["profile", "--checkpoint", "short", "--prompt", "a fox", "--height", "64"],
    ["profile", "extra"],
    ["nonsense"],
    ["--nonsense"],
    [],
]  # fmt: skip


def all_cases():
    parsers = next(action for action in make_parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    lines = [line for name, parser in parsers.choices.items() for line in hostile.cases(parser, name, VALID[name])]
    return [line for line in lines if line != ["experiment"]] + TOGETHER


CASES = all_cases()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the values name."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("folder", "tiny", "broken/unet", "broken/scheduler"):
        (place / folder).mkdir(parents=True)
    (place / "folder" / "mine.txt").write_text("mine")
    (place / "notes.txt").write_text("text")
    (place / "link").symlink_to("notes.txt")
    for file, text in {
        "hidden/.diffusers-xai/mine.txt": "mine",
        "hidden/report.html": "mine",
        "damaged/scores.json": '{"cut',
        "damaged/ablation/profile.json": '{"cut',
        "audited/scores.json": json.dumps({"settings": {"label": 3, "other_label": 4, "steps": 9}, "rows": []}),
    }.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    (place / "tiny" / "model_index.json").write_text("{}")
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        (place / "broken" / part).write_text('{"cut')
    prompts = {"text": "StableDiffusion", "flow": "StableDiffusion3", "image": "StableDiffusionImg2Img"}
    for name, kind in {**prompts, "short": "StableDiffusionLatentUpscale"}.items():
        (place / name / "scheduler").mkdir(parents=True)
        (place / name / "model_index.json").write_text(json.dumps({"_class_name": f"{kind}Pipeline"}))
        scheduler = "FlowMatchEulerDiscreteScheduler" if name == "flow" else "DDIMScheduler"
        config = {"_class_name": scheduler, "num_train_timesteps": 1000}
        (place / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    os.mkfifo(place / "pipe")
    (place / "deep").mkdir()
    (place / "deep" / "model_index.json").write_text("[" * 100_000)
    (place / "loop").symlink_to("loop")
    (place / "vector.svg").write_text("<svg/>")
    (place / "exits.py").write_text("raise SystemExit(0)")
    for name, size in {"negative": -4, "endless": 10**9, "worded": "big"}.items():
        for part, config in (
            ("unet", {"_class_name": "UNet2DModel", "sample_size": size}),
            ("scheduler", {"_class_name": "DDPMScheduler"}),
        ):
            (place / name / part).mkdir(parents=True)
            (place / name / part / ("config.json" if part == "unet" else "scheduler_config.json")).write_text(
                json.dumps(config)
            )
        (place / name / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    picture = Image.fromarray(np.full((32, 32), 255, np.uint8))
    picture.save(place / "white.png")
    (place / "cut.png").write_bytes((place / "white.png").read_bytes()[:40])
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(place / "small.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(place / "black.png")
    return place


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    for kind in (XAIPipeline, DiffusionPipeline):
        monkeypatch.setattr(kind, "from_pretrained", load)


def test_there_are_many():
    assert len(CASES) >= 400


@pytest.mark.parametrize("line", CASES, ids=lambda line: " ".join(line).encode("unicode_escape").decode()[:60])
def test_a_bad_value_is_one_line(line, place, nothing_loaded, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    code = cli.main(line)
    out, err = capsys.readouterr()
    assert "weights were loaded" not in err, line
    assert code == 2, (out, err)
    assert out == ""
    assert err.startswith("diffusers-xai: error: ")
    assert err.count("\n") == 1
    assert len(err) < 1000
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("line", [["experiment", "ablation"], ["audit"]])
def test_too_little_space_is_seen_before_anything_is_loaded(line, place, nothing_loaded, monkeypatch, capsys):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert cli.main(line) == 2
    assert re.search(r"has 1 kB free, the (experiments|audit) takes? \d", capsys.readouterr().err.splitlines()[-1])
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("line", [["profile", "--seed=x"], ["profile", "--out=notes.txt"], ["push", "a/b/c"]])
def test_the_script_leaves_with_two(line, place):
    command = [sys.executable, "-m", "diffusers_xai.cli", *line]
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("diffusers-xai: error: ")
    assert done.stderr.count("\n") == 1
