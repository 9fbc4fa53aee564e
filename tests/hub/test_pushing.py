"""Pipelines and profiles to a Hub server over HTTP and back, in processes of their own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.hub.cut_proxy import CutProxy
from tests.reference.local_hub import LocalHub


def in_process(hub, home, code, *, token=None, endpoint=None, **environment):
    """Runs `code` in a new process with a cache in `home`; its last line of output, as JSON."""
    environment |= {
        **{name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")},
        "HF_ENDPOINT": endpoint or hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": token or hub.token,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


SAMPLE = """
import json, numpy as np, torch
def sample(pipe, path, **kwargs):
    generator = torch.Generator().manual_seed(5)
    labels = [3, {"Smiling": True}]
    np.save(path, pipe(labels, num_inference_steps=3, output_type="np", generator=generator, **kwargs).images)
"""

PUSH = """
from diffusers import DDPMScheduler
from diffusers_xai import XAIPipeline
from tests.tiny import convnext_unet
pipe = XAIPipeline(convnext_unet(), DDPMScheduler())
"""

WITHOUT_THE_PACKAGE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "diffusers_xai":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.parametrize("storage", ["regular", "xet"])
def test_one_repository_serves_this_package_and_plain_diffusers(storage, tmp_path):
    with LocalHub(tmp_path / "hub", storage=storage) as hub:
        first = in_process(
            hub,
            tmp_path / "a",
            f"""{SAMPLE}{PUSH}
first = pipe.push_to_hub("faces", private=True, card={{"data": "Forty pictures."}}).oid
torch.nn.init.zeros_(pipe.unet.conv_out.weight)
second = pipe.push_to_hub("tester/faces", sample_grid=False, commit_message="Zeros").oid
XAIPipeline.from_pretrained("tester/faces", revision=first).save_pretrained({str(tmp_path / "saved")!r})
pipe = XAIPipeline.from_pretrained("tester/faces", revision=first)
sample(pipe, {str(tmp_path / "own.npy")!r})
sample(pipe, {str(tmp_path / "own-guided.npy")!r}, guidance_scale=2.0)
zeros = XAIPipeline.from_pretrained("tester/faces")
from huggingface_hub import HfApi, ModelCard
card = ModelCard.load("tester/faces")
card.validate()
print(json.dumps({{
    "class": type(pipe.unet).__module__, "first": first, "second": second,
    "zeros": zeros.unet.conv_out.weight.abs().sum().item(), "private": HfApi().model_info("tester/faces").private,
    "files": sorted(HfApi().list_repo_files("tester/faces", revision=first)),
    "later files": sorted(HfApi().list_repo_files("tester/faces")),
}}))
""",
        )
        assert first["class"] == "diffusers_xai"  # the installed class, not the repository's file
        assert first["zeros"] == 0.0
        assert first["private"] is True
        expected = {".gitattributes", "README.md", "card.json", "model_index.json", "pipeline.py", "samples.png"}
        expected |= {"scheduler/scheduler_config.json", "unet/config.json", "unet/diffusers_xai.py"}
        expected |= {"unet/diffusion_pytorch_model.safetensors"}
        assert set(first["files"]) == expected
        assert set(first["later files"]) == expected - {"samples.png", "card.json"}
        repo = hub.repos["model", "tester/faces"]
        assert [repo.commits[sha]["title"] for sha in (first["first"], first["second"])] == [
            "Upload the pipeline",
            "Zeros",
        ]
        assert len(repo.commits) == 3  # the Hub's own, and one for each push

        plain = in_process(
            hub,
            tmp_path / "b",
            f"""{WITHOUT_THE_PACKAGE}{SAMPLE}
from diffusers import DiffusionPipeline
revision = {first["first"]!r}
try:
    DiffusionPipeline.from_pretrained("tester/faces", revision=revision)
    refused = False
except ValueError as error:
    refused = "trust_remote_code" in str(error)
pipe = DiffusionPipeline.from_pretrained(
    "tester/faces", revision=revision, custom_revision=revision, trust_remote_code=True
)
sample(pipe, {str(tmp_path / "plain.npy")!r})
sample(pipe, {str(tmp_path / "plain-guided.npy")!r}, guidance_scale=2.0)
print(json.dumps({{"refused": refused, "ours": "diffusers_xai" in sys.modules}}))
""",
        )
        assert plain == {"refused": True, "ours": False}
    for name in ("", "-guided"):
        own, other = np.load(tmp_path / f"own{name}.npy"), np.load(tmp_path / f"plain{name}.npy")
        assert own.shape == (2, 16, 16, 3)
        assert np.array_equal(own, other)
        assert own.std() > 0


def test_a_lost_connection_is_tried_again_and_a_failed_push_changes_nothing(tmp_path):
    with LocalHub(tmp_path / "hub", storage="lfs") as hub:
        code = f"""{SAMPLE}{PUSH}
import diffusers_xai.hub.transfer as transfer
transfer.RETRY_AFTER = (0.1, 0.1)
try:
    pipe.push_to_hub("tester/faces", sample_grid=False, card={{"data": DATA}})
    print(json.dumps("pushed"))
except transfer.HubError as error:
    print(json.dumps(str(error)))
"""

        def push(data, cuts):
            direct = hub.endpoint
            with CutProxy(direct, cuts) as proxy:
                hub.endpoint = proxy.endpoint  # the Hub tells where files are to be sent
                text = in_process(hub, tmp_path / data, f"DATA = {data!r}" + code, HF_HUB_DISABLE_XET="1")
                hub.endpoint = direct
            return text, len(cuts) - len(proxy.cuts)

        # Half a file, half a commit, and a commit that was made although the answer never came.
        cuts = [("file", "request"), ("commit", "request"), ("commit", "answer")]
        assert push("one", cuts) == ("pushed", 3)
        repo = hub.repos["model", "tester/faces"]
        assert len(repo.commits) == 2  # the Hub's own, and ours
        files = repo.commits[repo.branches["main"]]["files"]
        assert files["unet/diffusion_pytorch_model.safetensors"].lfs
        assert b"one" in (hub.blobs / files["card.json"].sha256).read_bytes()
        before = dict(repo.branches)

        text, lost = push("other", [("commit", "request")] * 100)
        assert lost == 3
        assert text.startswith("The connection to the Hub was lost, tester/faces stays as it was: try again")
        assert repo.branches == before
        assert len(repo.commits) == 2


def test_what_the_hub_refuses_is_one_clear_line_of_the_command(tmp_path):
    with LocalHub(tmp_path / "hub", storage="regular") as hub:
        code = f"""
import contextlib, io, json
from diffusers import DDPMScheduler
from diffusers_xai import DiffusionProfile, XAIPipeline
from diffusers_xai.cli import main
from tests.tiny import convnext_unet
XAIPipeline(convnext_unet(), DDPMScheduler()).save_pretrained({str(tmp_path / "pipe")!r})
def command(*arguments):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(list(arguments))
    return code, errors.getvalue().splitlines()[-1], out.getvalue()
TOKEN = __import__("os").environ["HF_TOKEN"]
pipe = {str(tmp_path / "pipe")!r}
results = {{"push": command("push", "tester/faces", "--checkpoint", pipe, "--revision", "draft", "--no-sample-grid")}}
results["no checkpoint"] = command("push", "tester/faces", "--checkpoint", "nowhere")
results["no id"] = command("push", "not an id", "--checkpoint", pipe)
try:
    DiffusionProfile.from_pretrained("tester/nothing")
except OSError as error:
    results["no profile"] = str(error)
try:
    DiffusionProfile.from_pretrained("tester/faces", revision="v9")
except OSError as error:
    results["no data set"] = str(error)
print(json.dumps(results))
"""
        good = in_process(hub, tmp_path / "a", code)
        assert good["push"][0] == 0
        assert good["push"][2].startswith(hub.endpoint)
        assert "model_index.json" in hub.repos["model", "tester/faces"].commits[
            hub.repos["model", "tester/faces"].branches["draft"]
        ]["files"]  # fmt: skip
        assert good["no checkpoint"][:2] == [
            2,
            "diffusers-xai: error: no checkpoint at nowhere: expected a folder with model_index.json",
        ]
        assert good["no id"][:2] == [
            2,
            "diffusers-xai: error: Expected a repository such as user/name, got 'not an id'",
        ]
        assert good["no profile"].startswith(
            "Expected a repository on the Hub, got tester/nothing, which is not there or"
        )
        assert "tester/faces" in good["no data set"]

        del hub.repos["model", "tester/faces"]
        wrong = in_process(hub, tmp_path / "b", code, token="hf_wrong")
        assert wrong["push"][0] == 2
        assert wrong["push"][1].startswith(
            "diffusers-xai: error: The Hub refused the token for tester/faces (HTTP 401)"
        )
        assert not hub.repos


def test_a_profile_travels_and_is_read_file_by_file(tmp_path):
    with LocalHub(tmp_path / "hub", storage="regular") as hub:
        first = in_process(
            hub,
            tmp_path / "a",
            f"""{PUSH}
import json, torch
from diffusers_xai import Activations, AttentionOutputs, Samples
what = [Samples(every=2), AttentionOutputs(), Activations(layers="mid_attn.fn", steps=[1])]
generators = [torch.Generator().manual_seed(s) for s in (4, 9)]
profile = pipe([3, 12], num_inference_steps=5, generator=generators, record=what).profile
first = profile.push_to_hub("tester/run", private=True)
profile.save_pretrained({str(tmp_path / "local")!r})
second = pipe([1], num_inference_steps=2, record=[Samples()]).profile.push_to_hub("tester/run").oid
print(json.dumps({{"first": first.oid, "second": second}}))
""",
        )
        hub.log.clear()
        second = in_process(
            hub,
            tmp_path / "b",
            f"""
import json, numpy as np
from diffusers_xai import DiffusionProfile
profile = DiffusionProfile.from_pretrained("tester/run", revision={first["first"]!r})
local = DiffusionProfile.from_pretrained({str(tmp_path / "local")!r})
repr(profile)
attention = profile["attention_outputs"]
try:
    DiffusionProfile.from_pretrained("tester/run", token="hf_wrong", cache_dir={str(tmp_path / "other")!r})
    private = "open"
except OSError as error:
    private = str(error)
print(json.dumps({{
    "private": private, "names": sorted(profile) == sorted(local),
    "equal": bool(np.array_equal(attention, local["attention_outputs"])),
    "dims": list(attention.dims), "provenance": profile.provenance == local.provenance,
}}))
""",
        )
        assert second.pop("private").startswith(
            "Expected a repository on the Hub, got tester/run, which is not there or"
        )
        assert second == {
            "names": True,
            "equal": True,
            "dims": ["step", "sample", "height", "width"],
            "provenance": True,
        }
        fetched = {e["path"].rsplit("/", 1)[-1] for e in hub.log if "/resolve/" in e["path"] and e["method"] == "GET"}
        assert fetched == {"profile.json", "attention_outputs.safetensors"}

        third = in_process(
            hub,
            tmp_path / "c",
            f"""
import json, datasets, numpy as np
from huggingface_hub import DatasetCard
from diffusers_xai import DiffusionProfile
table = datasets.load_dataset("tester/run", "table", revision={first["first"]!r}, split="train")
curve = datasets.load_dataset("tester/run", "scalars", revision={first["first"]!r}, split="train")
local = DiffusionProfile.from_pretrained({str(tmp_path / "local")!r})
row = next(r for r in table if r["step"] == 2 and r["sample"] == 1)
x = local["samples"].sel(step=2).isel(sample=1).values.transpose(1, 2, 0)
pixels = np.round(np.clip(x / 2 + 0.5, 0, 1) * 255)
end = [np.asarray(r["samples"]) for r in table if r["step"] is None]
x = local["final_sample"].isel(sample=1).values.transpose(1, 2, 0)
finished = bool((end[1] == np.round(np.clip(x / 2 + 0.5, 0, 1) * 255)).all())
latest = DiffusionProfile.from_pretrained("tester/run")
DatasetCard.load("tester/run").validate()
print(json.dumps({{
    "columns": table.column_names, "rows": len(table), "picture": bool((np.asarray(row["samples"]) == pixels).all()),
    "row": [row[k] for k in ("timestep", "seed", "label")],
    "ssim": abs(row["ssim"] - float(local["measures/ssim"].sel(step=2).isel(sample=1))) < 1e-9,
    "latest": sorted(latest), "finished": finished, "empty": [r["step"] for r in table if r["x0"] is None],
    "curve": [r["measures/ssim"] for r in curve if r["sample"] == 1],
    "stored": local["measures/ssim"].isel(sample=1).values.tolist(),
}}))
""",
        )
    assert third["columns"] == ["sample", "step", "timestep", "seed", "label", "samples", "x0", "ssim"]
    assert third["rows"] == 2 * (3 + 1)  # every second step, and the finished image
    assert third["empty"] == [None, None]
    assert third["finished"] is True
    assert len(third["stored"]) == 5
    assert third["curve"] == third["stored"]
    assert third["picture"] is True
    assert third["row"] == [400.0, 9, 12]
    assert third["ssim"] is True
    assert third["latest"] == ["final_sample", "measures/ssim", "samples", "x0"]  # the first one's files are gone


def test_a_closed_form_is_pushed_without_code_for_plain_diffusers(tmp_path):
    with LocalHub(tmp_path / "hub", storage="regular") as hub:
        facts = in_process(
            hub,
            tmp_path / "a",
            """
import json, torch
from diffusers import DDPMScheduler
from huggingface_hub import HfApi, ModelCard
from diffusers_xai import MixtureDenoiser, XAIPipeline
images = torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
scheduler = DDPMScheduler()
pipe = XAIPipeline(MixtureDenoiser.fit(images, torch.arange(9) % 2, scheduler), scheduler)
pipe.push_to_hub("tester/known")
loaded = XAIPipeline.from_pretrained("tester/known")
same = all(torch.equal(value, loaded.unet.state_dict()[name]) for name, value in pipe.unet.state_dict().items())
card = ModelCard.load("tester/known").text
print(json.dumps([same, type(loaded.unet).__name__, sorted(HfApi().list_repo_files("tester/known")), card]))
""",
        )
    same, name, files, card = facts
    assert same
    assert name == "MixtureDenoiser"
    assert not [file for file in files if file.endswith(".py")]
    assert "a `MixtureDenoiser` with" in card
    assert "trust_remote_code" not in card
    assert 'Activations(layers="x0"' in card
