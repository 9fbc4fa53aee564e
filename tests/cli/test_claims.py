"""Folders that two commands want, interruptions, and what both leave."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diffusers_xai import DiffusionProfile, XAIPipeline, cli
from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.output import claimed, new_folder
from tests.cli.checkpoints import save_tiny
from tests.processes import environment


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_of_two_claims_one_is_refused_and_deletes_nothing(place):
    out = Path("a/b/profile")
    with claimed(out):
        before = sorted(place.rglob("*"))
        with pytest.raises(CommandError, match="another command is writing a/b/profile"), claimed(out):
            raise AssertionError("both hold it")
        assert sorted(place.rglob("*")) == before
        with claimed(Path("a/b/other")):
            pass
        assert sorted(place.rglob("*")) == before
    assert list(place.iterdir()) == []


def test_of_many_threads_one_at_a_time_holds_the_folder(place):
    """Also while others release it: the lock's file is removed under a lock that is held."""
    holders, most, refused, done = 0, 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def work():
        nonlocal holders, most, refused, done
        start.wait()
        for _ in range(200):
            try:
                with claimed(Path("out")):
                    with guard:
                        holders += 1
                        most = max(most, holders)
                    with guard:
                        holders -= 1
                        done += 1
            except CommandError:
                with guard:
                    refused += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert done > 0
    assert done + refused == 1600
    assert list(place.iterdir()) == []


def test_a_claim_ends_with_its_process(place):
    code = "import os; from pathlib import Path; from diffusers_xai.cli.output import claimed\n"
    code += "with claimed(Path('out')): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 9
    with claimed(Path("out")):
        pass
    assert list(place.iterdir()) == []


def test_a_folder_keeps_what_was_there_when_the_new_one_fails(place):
    (place / "out").mkdir()
    (place / "out" / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), new_folder(Path("out")) as new:  # noqa: PT012
        new.mkdir()
        raise RuntimeError
    assert [str(path.relative_to(place)) for path in sorted(place.rglob("*"))] == ["out", "out/old.txt"]


@pytest.mark.parametrize(
    ("command", "inside"), [(["profile"], False), (["experiment", "ablation"], True), (["audit"], True)]
)
def test_the_second_of_two_commands_is_refused(place, capsys, command, inside):
    with claimed(Path("out"), inside):
        before = sorted(place.rglob("*"))
        assert cli.main([*command, "--out", "out"]) == 2
        assert sorted(place.rglob("*")) == before
    told = "diffusers-xai: error: another command is writing out: wait for it, or choose another --out\n"
    assert capsys.readouterr().err == told
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "moment", ["diffusers_xai.cli.command", "diffusers_xai.cli.parser", "torch.nn", "Loading", "Sampling"]
)
def test_an_interruption_is_one_line_at_any_moment(place, moment):
    """The process is interrupted by itself when it gets there, so that no clock decides."""
    save_tiny(place / "tiny")
    code = "sys.meta_path.insert(0, Finder())" if "." in moment else "import builtins; builtins.print = spy"
    program = f"""
import os, signal, sys
said = print
class Finder:
    def find_spec(self, name, *args):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
def spy(*args, **kwargs):
    said(*args, **kwargs)
    if str(args[0]).startswith({moment!r}):
        os.kill(os.getpid(), signal.SIGINT)
{code}
signal.signal(signal.SIGINT, signal.default_int_handler)
from diffusers_xai.cli.__main__ import script
early = [name for name in sys.modules if name.startswith("diffusers_xai") or name == "lazy_loader"]
assert len(early) == 3, early  # before anything answers, there is little to interrupt
sys.argv[1:] = ["profile", "--checkpoint", "tiny", "--steps", "4"]
script()
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "diffusers-xai: interrupted, nothing was written"
    assert "Traceback" not in done.stderr
    assert [path.name for path in place.iterdir()] == ["tiny"]


def test_an_ignored_interruption_stays_ignored(place):
    """As `nohup` and a shell's `&` leave it."""
    save_tiny(place / "tiny")
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from diffusers_xai.cli import main
code = main(["profile", "--checkpoint", "tiny", "--steps", "2", "--no-gradients", "--json"])
os.kill(os.getpid(), signal.SIGINT)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert DiffusionProfile.from_pretrained(json.loads(done.stdout)["profile"])["samples"].sizes["step"] == 2


@pytest.mark.parametrize("command", [["audit"], ["experiment", "process", "--seeds", "2"]])
def test_too_little_space_is_seen_before_a_model_is_loaded(place, monkeypatch, capsys, command):
    save_tiny(place / "tiny")
    full = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    monkeypatch.setattr(XAIPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    assert cli.main([*command, "--checkpoint", "tiny", "--steps", "2", "--out", "new"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has 1 kB free" in line
    assert [path.name for path in place.iterdir()] == ["tiny"]


def test_experiments_say_what_is_kept(place, monkeypatch, capsys):
    from diffusers_xai.experiments import EXPERIMENTS, Sampling

    save_tiny(place / "tiny")
    command = ["experiment", "ssim-trajectory", "--checkpoint", "tiny", "--seeds", "1", "--steps", "2"]
    assert cli.main(command) == 0

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    def interrupted_at_the_second(function):
        calls = iter([function, interrupt])
        return lambda *args, **kwargs: next(calls)(*args, **kwargs)

    command[1] = "process"
    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "profile", interrupted_at_the_second(Sampling.profile))
        assert cli.main([*command[:-3], "2", *command[-2:], "--batch-size", "1"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        "interrupted, 1 finished in experiments and kept, and 1 batches of the next one: the same command continues"
        " from there"
    )
    monkeypatch.setattr(type(EXPERIMENTS["process"]), "run", interrupt)
    assert cli.main([*command, "--out", "new"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("interrupted, no experiment was finished")
    assert not (place / "new").exists()
