"""`diffusers-xai app`: its errors, and the Space that it uploads."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import gradio
import pytest
import yaml
from diffusers import DDPMPipeline, DDPMScheduler

from diffusers_xai.cli import app, main
from tests.app.browser import free_port, wait_for_page
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


def test_it_serves_the_page_with_every_checkpoint_and_ends_on_interruption(tmp_path):
    for name in ("cats", "digits"):
        DDPMPipeline(unet_2d(), DDPMScheduler()).save_pretrained(tmp_path / name)
    port = free_port()
    # Where the parent ignores SIGINT, as nohup does, its children would too.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from diffusers_xai.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--port", str(port), "--checkpoint", str(tmp_path / "cats"), "--checkpoint", str(tmp_path / "digits")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "app", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        page = wait_for_page(f"http://127.0.0.1:{port}/", process)
        assert 'property="og:title" content="How a diffusion model makes a face"' in page
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30) as answer:
            components = json.load(answer)["components"]
        (choices,) = [c["props"]["choices"] for c in components if c["props"].get("elem_id") == "model"]
        assert [name for name, _ in choices] == ["cats", "digits", "lfw-32 (in the package)"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "Traceback" not in errors
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


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
    assert any(name.startswith("diffusers_xai/checkpoints/lfw-32") for name in files)
    assert not [name for name in files if "__pycache__" in name]
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["python_version"]) == ("gradio", "app.py", "3.12")
    assert metadata["sdk_version"] == gradio.__version__
