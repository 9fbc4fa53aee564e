"""The project's frame: what is packaged, what is pinned, and what README.md and model_card.md promise."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusers_xai
from tests.processes import environment
from tests.recording.own_network import OwnNetwork


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_command(name: str) -> str:
    """The code block of README.md that follows a marker."""
    (block,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
    return block.rstrip("\n")


def readme_python() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.mark.parametrize("name", ["run", "test"])
def test_readme_command_is_one_line_in_its_own_environment(name):
    command = readme_command(name)
    assert "\n" not in command
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ")


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (extraction,) = re.findall(r"^command=\$\((awk .*)\)$", script, flags=re.MULTILINE)
    printed = subprocess.run(["bash", "-c", extraction], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed == readme_command("test") + "\n"
    assert 'bash -c "$command"' in script
    assert "-e '.[test]'" in printed
    assert " .venv/bin/python -m pytest " in printed


def test_readme_imports_exist():
    for block in readme_python():
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "diffusers_xai":
                missing = {alias.name for alias in node.names} - set(dir(diffusers_xai))
                assert not missing


def test_readme_links_to_existing_files():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/data-flow.svg" in links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_python()[0], "README.md", "exec"), {})
    assert (tmp_path / "face.png").exists()
    profile = diffusers_xai.DiffusionProfile.from_pretrained("face-profile")
    assert {"samples", "x0", "attention_outputs"} <= set(profile)
    assert "activations/downs.1.2.fn" in profile


def test_your_own_model_in_five_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"## Your own model in five lines\n.*?```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(lines.splitlines()) == 5
    model, scheduler, noise = OwnNetwork(), DDIMScheduler(clip_sample=False), torch.randn(2, 3, 16, 16)
    scheduler.set_timesteps(3)
    given = {"model": model, "scheduler": scheduler, "x": noise, "SimpleNamespace": SimpleNamespace, "torch": torch}
    names = {name: getattr(diffusers_xai, name) for name in ("record", "Samples", "Activations")}
    exec(compile(lines, "README.md", "exec"), given | names)
    profile = diffusers_xai.DiffusionProfile.from_pretrained("mine")
    with torch.no_grad():
        expected = model.body[0](noise)
    assert np.array_equal(profile["activations/body.0"].isel(step=0).values, expected)
    assert np.array_equal(profile["samples"].isel(step=0).values, noise)


def test_installed_metadata():
    assert importlib.metadata.version("diffusers-xai") == PROJECT["version"]
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="diffusers-xai")
    assert callable(script.load())


def test_every_dependency_is_pinned_within_its_range():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"].values()
    requirements = [Requirement(text) for texts in [PROJECT["dependencies"], *extras] for text in texts]
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[name]), f"{requirement} against {name}=={pins[name]}"
    assert "torchvision" not in pins, "a torchvision beside a CPU build of torch breaks `import diffusers`"


def test_distributions_carry_the_checkpoints_and_no_tests(distributions):
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "diffusers_xai").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "diffusers_xai/py.typed" in package
    checkpoint = "diffusers_xai/checkpoints/lfw-64"
    assert {f"{checkpoint}/README.md", f"{checkpoint}/model_index.json"} <= package
    assert any(name.startswith(checkpoint) and name.endswith(".safetensors") for name in package)
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("diffusers_xai/hub/model_card.md") == (ROOT / "model_card.md").read_bytes()
    app = {path.name for path in (ROOT / "spaces").iterdir() if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt"} <= app
    assert names == package | {"diffusers_xai/hub/model_card.md"} | {f"diffusers_xai/spaces/{name}" for name in app}
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    package |= {f"spaces/{name}" for name in app}
    assert names == package | {"LICENSE", "PKG-INFO", "README.md", "model_card.md", "pyproject.toml", ".gitignore"}


def test_the_package_is_imported_without_its_extras():
    code = (
        "import importlib, pkgutil, sys\n"
        "extras = ['datasets', 'gradio', 'kaleido', 'starlette', 'tensorboard', 'transformers']\n"
        "sys.modules.update(dict.fromkeys(extras))\n"
        "import diffusers_xai\n"
        "for module in pkgutil.walk_packages(diffusers_xai.__path__, 'diffusers_xai.'):\n"
        "    if not module.name.startswith('diffusers_xai.app.'): importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_a_distribution_works_without_the_checkout(distributions, kind, tmp_path):
    (file,) = distributions.glob(kind)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", tmp_path / "site", file], check=True, cwd=tmp_path)
    code = (
        "import diffusers_xai; from diffusers_xai.cli.app import space_folder; from diffusers_xai.hub import cards; "
    )
    code += "print(diffusers_xai.__file__, space_folder(), len(cards.template()) > 100)"
    python = {
        "cwd": tmp_path,
        "env": environment(PYTHONPATH=str(tmp_path / "site")),
        "check": True,
        "capture_output": True,
        "text": True,
    }
    package, space, card = subprocess.run([sys.executable, "-c", code], **python).stdout.split()
    assert card == "True"
    assert all(Path(path).is_relative_to(tmp_path) for path in (package, space))
    command = [sys.executable, "-m", "diffusers_xai.cli", "profile", "--steps", "2", "--no-gradients", "--json"]
    made = json.loads(subprocess.run(command, **python).stdout)
    assert (tmp_path / made["report"]).is_file()
