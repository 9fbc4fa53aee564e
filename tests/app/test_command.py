"""`diffusers-xai app`: its errors, and the Space that it uploads."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import gradio
import pytest
import yaml
from diffusers import DDPMPipeline, DDPMScheduler

from diffusers_xai.cli import app, main
from tests.app.browser import free_port, wait_for_page
from tests.app.visitor import Visitor
from tests.reference.local_hub import LocalHub
from tests.tiny import unet_2d


def test_a_missing_extra_is_named(monkeypatch, capsys):
    find = app.importlib.util.find_spec
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find(name, *a))
    assert main(["app"]) == 2
    assert "pip install 'diffusers-xai[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("", "model_index.json"), ("nowhere", "no checkpoint at")])
def test_a_missing_checkpoint_is_told(tmp_path, capsys, name, message):
    assert main(["app", "--checkpoint", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def start(folder, *options):
    """The command as a process whose files lie in `folder`, and its page."""
    port = free_port()
    # Where the parent ignores SIGINT, as nohup does, its children would too.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from diffusers_xai.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "app", "--port", str(port), *options],
        env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}/"
    return process, url, wait_for_page(url, process)


def uploaded(url, folder):
    """The path of a visitor's upload on the disk, which the visitor is not told."""
    _, told = Visitor(url).upload("profile.zip", b"x" * 1000)
    (path,) = [path for path in folder.rglob("profile.zip") if path.parts[-2:] == Path(told).parts[-2:]]
    assert not told.startswith("/")
    return path


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_every_checkpoint_and_leaves_no_file_behind(tmp_path, ending):
    """Stopped by Ctrl-C or by a service manager; after a kill, the next start clears what is left."""
    files, options = tmp_path / "files", []
    files.mkdir()
    for name in ("cats", "digits") if ending == signal.SIGINT else ():
        DDPMPipeline(unet_2d(), DDPMScheduler()).save_pretrained(tmp_path / name)
        options += ["--checkpoint", str(tmp_path / name)]
    options += ["--json"] if options else []
    left = None
    if ending == signal.SIGTERM:
        process, url, _ = start(files)
        left = uploaded(url, files)
        process.kill()
        process.wait()
        assert os.path.exists(left)
    process, url, page = start(files, *options)
    try:
        assert left is None or not os.path.exists(left)
        assert 'property="og:title" content="How a diffusion model makes a face"' in page
        components = Visitor(url).config()["components"]
        (offered,) = [c["props"] for c in components if c["props"].get("elem_id") == "model"]
        expected = ["lfw-64 (in the package)", "lfw-32 (in the package, fast)", "drawn-32 (in the package)"]
        expected = ["cats", "digits", *expected] if options else expected
        assert [name for name, _ in offered["choices"]] == expected
        assert offered["value"] == expected[0]
        uploaded(url, files)
        process.send_signal(ending)
        printed, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Traceback" not in errors
    if options:
        assert json.loads(printed) == {"url": url, "public_url": None}
    else:
        assert printed == f"Open {url}. Ctrl-C ends it.\n"
    assert [path for path in files.rglob("*") if path.is_file() and path.name != "starting"] == []
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_push_makes_a_space_that_holds_the_package(tmp_path):
    with LocalHub(tmp_path / "hub", storage="regular") as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": hub.token,
        }
        code = "import sys; from diffusers_xai.cli import main; sys.exit(main(['app', '--push', 'tester/face']))"
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        ask = """
import json, huggingface_hub as h
info = h.HfApi().space_info("tester/face")
card = open(h.hf_hub_download("tester/face", "README.md", repo_type="space"), encoding="utf-8").read()
print(json.dumps([[f.rfilename for f in info.siblings], card]))
"""
        shown = subprocess.run(
            [sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True
        )
    files, card = json.loads(shown.stdout.splitlines()[-1])
    assert {
        "app.py",
        "README.md",
        "requirements.txt",
        "diffusers_xai/__init__.py",
        "diffusers_xai/app/server.py",
    } <= set(files)
    assert any(name.startswith("diffusers_xai/checkpoints/lfw-64") for name in files)
    assert not [name for name in files if "__pycache__" in name]
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["python_version"]) == ("gradio", "app.py", "3.12")
    assert metadata["sdk_version"] == gradio.__version__
