"""The folder that a Space holds: its card, its requirements, and that it starts with no repository around."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.app.browser import free_port, wait_for_page


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements():
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def test_the_requirements_are_those_of_the_package_and_of_a_space():
    needed = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["app"])]
    assert requirements() == {requirement.name: requirement for requirement in needed} | {
        "spaces": Requirement("spaces")
    }


def test_the_card_names_what_was_tested():
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == importlib.metadata.version("gradio")
    assert card["sdk_version"] in requirements()["gradio"].specifier
    assert (SPACE / card["app_file"]).is_file()
    assert isinstance(card["python_version"], str)  # unquoted, 3.10 would be the number 3.1
    major, minor = re.fullmatch(r"(\d+)\.(\d+)", card["python_version"]).groups()
    assert (int(major), int(minor)) >= (3, 11)
    assert PROJECT["requires-python"] == ">=3.11"
    assert {"diffusers_xai", "explainable-ai"} <= set(card["tags"])
    assert card["models"] == []  # nothing is loaded from the Hub
    assert card["datasets"] == ["logasja/lfw"]  # what the embedded checkpoint has seen
    assert len(card["short_description"]) <= 60  # the Hub refuses longer ones


@pytest.mark.slow
def test_the_folder_starts_alone(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SPACE, tmp_path / "space", ignore=ignored)
    shutil.copytree(ROOT / "diffusers_xai", tmp_path / "space" / "diffusers_xai", ignore=ignored)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "SPACE_ID": "user/faces", "HOME": str(tmp_path)}
    where = subprocess.run(
        [sys.executable, "-c", "import diffusers_xai; print(diffusers_xai.__file__)"],
        cwd=tmp_path / "space", env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
    process = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path / "space", env=environment)
    try:
        assert "How a diffusion model makes a face" in wait_for_page(f"http://127.0.0.1:{port}/", process)
    finally:
        process.kill()
        process.wait()
