"""What commands print: text or JSON, progress, help, completion; and that help imports nothing heavy."""

import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from diffusers_xai import XAIPipeline, cli
from diffusers_xai.cli.base import Console
from tests.cli.checkpoints import save_tiny
from tests.processes import environment


HEAVY = ("torch", "diffusers", "numpy", "xarray", "plotly", "huggingface_hub", "gradio")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny")
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [["--help"], ["profile", "--help"], ["app", "--help"], ["push", "--help"], ["--version"], ["profile", "--seed=x"]],
    ids=" ".join,
)
def test_help_and_errors_come_without_heavy_imports(line):
    code = f"import sys; from diffusers_xai.cli import main\ntry: main({line})\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_profile_as_json(place, capsys):
    command = [
        "profile",
        "--checkpoint",
        "tiny",
        "--steps",
        "4",
        "--every",
        "2",
        "--no-gradients",
        "--json",
        "--quiet",
    ]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts = json.loads(out)
    size = sum(path.stat().st_size for path in Path("profile").rglob("*") if path.is_file())
    assert facts == {
        "profile": "profile", "report": "profile/report.html", "bytes": size, "label": 3, "seed": 7, "steps": 4,
        "every": 2,
    }  # fmt: skip


def test_experiments_as_json_with_progress_in_lines(place, capsys):
    command = ["experiment", "ssim-trajectory", "--checkpoint", "tiny", "--seeds", "2", "--steps", "2", "--json"]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["report"] == "experiments/report.html"
    assert facts["experiments"] == {"ssim-trajectory": "experiments/ssim-trajectory"}
    assert "[1/1] ssim-trajectory: 2 seeds, 2 steps" in err.splitlines()
    assert "\r" not in err
    assert cli.main(command) == 0
    assert "[1/1] ssim-trajectory: finished before, kept" in capsys.readouterr().err.splitlines()
    assert cli.main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_what_uploads_and_what_grades_prints_json_too(place, capsys, monkeypatch):
    commit = SimpleNamespace(oid="abc", commit_url="https://hub/abc")
    graded = SimpleNamespace(save=lambda out: [out / "scores.json"], broken_controls=[])
    monkeypatch.setattr("diffusers_xai.hub.transfer.check_push", lambda repo: None)
    monkeypatch.setattr("diffusers_xai.hub.cards.read_facts", lambda folder: {})
    monkeypatch.setattr(XAIPipeline, "push_to_hub", lambda *args, **options: commit)
    monkeypatch.setattr("diffusers_xai.cli.app.push_space", lambda *args: "https://hub/space")
    monkeypatch.setattr("diffusers_xai.audit.audit", lambda *args, **options: graded)
    for line, expected in (
        (["push", "a/b", "--checkpoint", "tiny"], {"repo": "a/b", "commit": "abc", "url": "https://hub/abc"}),
        (["app", "--push", "a/b"], {"repo": "a/b", "url": "https://hub/space"}),
        (["audit", "--checkpoint", "tiny"], {"json": "audit/scores.json", "broken_controls": []}),
    ):
        assert cli.main([*line, "--json", "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == expected
        assert err == ""


def test_without_a_terminal_progress_is_lines(place, capsys):
    assert cli.main(["profile", "--checkpoint", "tiny", "--steps", "4", "--no-gradients"]) == 0
    err = capsys.readouterr().err
    assert "\r" not in err
    lines = err.splitlines()
    assert lines[:3] == ["Label 0011; --label chooses another of 0..15", "Loading tiny", "Sampling 4 steps"]
    assert any(line.startswith("Sampling: 4 of 4, ") for line in lines)
    assert len(lines) == len(set(lines))


def test_bars_within_bars_are_lines_of_words_too(capsys):
    for _ in tqdm(range(2), **Console().bar_options("seeds")):
        for _ in tqdm(range(2), **Console().bar_options("steps")):
            pass
    err = capsys.readouterr().err
    assert not {"\r", "\x1b"} & set(err)
    assert all(line.startswith(("seeds: ", "steps: ")) for line in err.splitlines())


def test_on_a_terminal_progress_is_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in tqdm(range(3), **Console().bar_options("Sampling")):
        pass
    assert terminal.getvalue().count("\r") >= 2
    assert "\n" not in terminal.getvalue().rstrip("\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_options_and_choices(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("profile", "experiment", "--guidance-scale", "dpm-solver", "label-divergence"):
        assert word in script


def test_who_reads_may_have_enough():
    code = "import sys; from diffusers_xai.cli import main; sys.exit(main(['completion', 'bash', '--json']))"
    ended = f"{sys.executable} -c {shlex.quote(code)} | head -c 80 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", ended], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_takes_the_completion(capsys, tmp_path):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    asked = f"""source {tmp_path}/completion
COMP_WORDS=(diffusers-xai profile --sched); COMP_CWORD=2; COMP_LINE='diffusers-xai profile --sched'; COMP_POINT=29
$(complete -p diffusers-xai | sed 's/.*-F \\([^ ]*\\) .*/\\1/') diffusers-xai --sched profile
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert done.stdout.split() == ["--scheduler"], done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_takes_the_completion(capsys, tmp_path):
    assert cli.main(["completion", "zsh"]) == 0
    (tmp_path / "_diffusers-xai").write_text(capsys.readouterr().out)
    # In a shell of its own on a terminal: there alone it completes. The end is marked, so that nothing is guessed.
    asked = f"""zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump; print re""ady'
zpty -r shell text '*ready*'
zpty -w -n shell $'diffusers-xai profile --sched\\t'
zpty -r shell text '*--scheduler*' && print -r -- completed
"""
    done = subprocess.run(["zsh", "-f", "-c", asked], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["completed"], done.stderr


def test_an_unknown_error_says_its_type(monkeypatch, capsys, place):
    def fail(*args):
        raise IndexError("list index out of range")

    monkeypatch.setattr("diffusers_xai.cli.profile_run.make_profile", fail)
    assert cli.main(["profile"]) == 2
    assert capsys.readouterr().err == (
        "diffusers-xai: error: IndexError: list index out of range (--debug shows where)\n"
    )


def test_a_floating_point_error_is_one_line(monkeypatch, capsys, place):
    def fail(*args):
        raise FloatingPointError("expected finite gradients, got NaN")

    monkeypatch.setattr("diffusers_xai.cli.profile_run.make_profile", fail)
    assert cli.main(["profile"]) == 2
    assert capsys.readouterr().err == "diffusers-xai: error: expected finite gradients, got NaN\n"
