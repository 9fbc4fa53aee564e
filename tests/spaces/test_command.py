"""`diffusers-xai app`: its errors, and the Space that it uploads."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from diffusers_xai.cli import app, main
from tests.reference.local_hub import LocalHub


def test_a_missing_extra_is_named(monkeypatch, capsys):
    find = app.importlib.util.find_spec
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find(name, *a))
    assert main(["app"]) == 2
    assert "pip install 'diffusers-xai[app]'" in capsys.readouterr().err


def test_a_missing_checkpoint_is_told(tmp_path, capsys):
    assert main(["app", "--checkpoint", str(tmp_path)]) == 2
    assert "model_index.json" in capsys.readouterr().err


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
    assert {"app.py", "README.md", "requirements.txt", "space_events.py", "diffusers_xai/__init__.py"} <= set(files)
    assert any(name.startswith("diffusers_xai/checkpoints/lfw-32") for name in files)
    assert not [name for name in files if "__pycache__" in name]
    metadata = yaml.safe_load(card.split("---")[1])
    assert (metadata["sdk"], metadata["app_file"], metadata["python_version"]) == ("gradio", "app.py", "3.12")
    gradio = pytest.importorskip("gradio")
    assert metadata["sdk_version"] == gradio.__version__
