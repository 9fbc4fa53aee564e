"""Loading from a Hub server over HTTP, as a user does in a process of his own."""

import os
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils

from diffusers_xai import GaussianDenoiser, XAIPipeline
from tests.reference.local_hub import LocalHub
from tests.tiny import convnext_unet, unet_2d


@pytest.fixture
def hub(tmp_path):
    with LocalHub(tmp_path / "hub", storage="regular") as server:
        yield server


def run_on_hub(hub, tmp_path, code):
    """Runs `code` in a new process with a cache of its own and this Hub, and returns what it prints."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.token,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )


def closed_form():
    return GaussianDenoiser.fit(torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0)), DDPMScheduler())


KINDS = {
    "own": (XAIPipeline, convnext_unet),
    "closed form": (XAIPipeline, closed_form),
    "ddpm": (DDPMPipeline, unet_2d),
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_opens_hub_repositories(kind, hub, tmp_path):
    pipeline_class, make = KINDS[kind]
    unet = make()
    pipe = pipeline_class(unet, DDPMScheduler())
    pipe.save_pretrained(tmp_path / "local")
    code = f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("tester/faces", private=True)
api.upload_folder(repo_id="tester/faces", folder_path={str(tmp_path / "local")!r})
from diffusers_xai import GaussianDenoiser, XAIPipeline
pipe = XAIPipeline.from_pretrained("tester/faces")
print(type(pipe.unet).__name__, type(pipe.scheduler).__name__, next(pipe.unet.parameters()).double().sum().item())
"""
    done = run_on_hub(hub, tmp_path, code)
    assert done.returncode == 0, done.stderr[-2000:]
    name, scheduler, weight_sum = done.stdout.split()[-3:]
    assert (name, scheduler) == (type(unet).__name__, "DDPMScheduler")
    assert float(weight_sum) == next(unet.parameters()).double().sum().item()
    downloads = [entry["path"] for entry in hub.log if "/resolve/" in entry["path"]]
    assert any(path.endswith("diffusion_pytorch_model.safetensors") for path in downloads)


def closed_form():
    return GaussianDenoiser(sample_size=8, in_channels=1)


@pytest.mark.parametrize(
    ("make", "expected", "code"),
    [
        (convnext_unet, "This folder holds no code. One that", True),
        (unet_2d, '`DDPMPipeline.from_pretrained("saved")` opens it', True),
        (closed_form, "`GaussianDenoiser`, is known to `diffusers_xai` alone", False),
    ],
)
def test_a_folder_without_code_says_how_plain_diffusers_opens_it(make, expected, code, tmp_path):
    pipe, folder = XAIPipeline(make(), DDPMScheduler()), tmp_path / "saved"
    pipe.save_pretrained(folder)
    text = (folder / "README.md").read_text()
    assert expected in text
    assert 'XAIPipeline.from_pretrained("saved")' in text
    assert ("with_code=True" in text) is code
    (folder / "README.md").write_text("Mine.")
    pipe.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "Mine."
    if code:
        pipe.save_pretrained(folder, with_code=True)
        opened = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        assert type(opened).__module__ != XAIPipeline.__module__
        again = XAIPipeline.from_pipe(opened)
        assert type(again.unet).__name__ == type(pipe.unet).__name__
        again.save_pretrained(tmp_path / "again", with_code=True)
        first, second = (sorted((at / "unet").glob("*.py")) for at in (folder, tmp_path / "again"))
        assert [file.read_text() for file in first] == [file.read_text() for file in second]
    else:
        with pytest.raises(ValueError, match="got GaussianDenoiser: plain diffusers could not open"):
            pipe.save_pretrained(tmp_path / "other", with_code=True)
        assert not (tmp_path / "other").exists()


def test_a_missing_repository_is_one_clear_error(hub, tmp_path):
    done = run_on_hub(
        hub,
        tmp_path,
        "import sys; from diffusers_xai.cli import main; sys.exit(main(['profile', '--checkpoint',"
        f" 'tester/nothing', '--out', {str(tmp_path / 'out')!r}]))",
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("diffusers-xai: error: ")
    assert "tester/nothing" in done.stderr
    assert not (tmp_path / "out").exists()


def test_diffusers_loads_components_of_this_package():
    """The private registry that `diffusers_xai.models` fills still exists and is still what the loader asks."""
    assert "diffusers_xai" in pipeline_loading_utils.LOADABLE_CLASSES
    library, name = pipeline_loading_utils._fetch_class_library_tuple(convnext_unet())
    assert (library, name) == ("diffusers_xai", "ConvNextUNet2DModel")
