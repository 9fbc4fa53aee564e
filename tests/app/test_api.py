"""The endpoints for programs, called with Gradio's client: their values against direct computations."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
import torch
from diffusers import DDPMScheduler
from gradio.utils import get_upload_folder
from gradio_client import Client
from gradio_client.exceptions import AppError

from diffusers_xai import Samples, XAIPipeline
from diffusers_xai.app import models, server, settings
from diffusers_xai.measures import structural_similarity
from diffusers_xai.profile.archive import read_archive
from tests.tiny import convnext_unet, unet_2d


ENDPOINTS = {"/plan", "/profile", "/sweep", "/compare", "/experiment_figure"}


@pytest.fixture(scope="module")
def offered():
    unets = {"faces": convnext_unet(), "no labels": unet_2d()}
    return {name: models.Model(name, XAIPipeline(unet, DDPMScheduler())) for name, unet in unets.items()}


@pytest.fixture(scope="module")
def client(offered, tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    app = server.build(offered, settings.Limits(max_seconds=600), folder, steps=4, every=2, gradients=False)
    url = app.start(quiet=True)
    yield Client(url, verbose=False, download_files=str(folder))
    app.demo.close()


def run(offered, label, seed, steps=4):
    pipe = offered["faces"].pipe
    generator = torch.Generator().manual_seed(seed)
    return pipe(label, num_inference_steps=steps, generator=generator, output_type="pt").images[0]


def test_only_the_endpoints_are_public_and_documented(client):
    found = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(found) == ENDPOINTS
    for endpoint in found.values():
        assert endpoint["description"]
        names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        assert "request" not in names
        assert {"seed", "steps", "model"} <= set(names)


def test_a_profile_is_the_one_of_its_arguments(client, offered, tmp_path):
    file = client.predict(label=["Male"], seed=7, steps=4, every=2, api_name="/profile")
    profile = read_archive(file, tmp_path / "profile")
    expected = run(offered, 0b0100, 7)
    shown = torch.from_numpy(profile["final_sample"].values[0]).div(2).add(0.5).clamp(0, 1)
    assert torch.equal(shown, expected)
    assert profile["samples"]["step"].values.tolist() == [0, 2]
    plan = client.predict(label=["Male"], seed=7, steps=4, every=2, api_name="/plan")
    assert plan["bytes"] == sum(array.nbytes for array in profile.values())
    assert plan["backward_passes"] == 0


def test_a_comparison_is_the_ssim_of_the_states(client, offered):
    result = client.predict(label=1, seed=1, other_seed=2, steps=4, every=4, api_name="/compare")
    states = []
    for seed in (1, 2):
        output = offered["faces"].pipe(
            1, num_inference_steps=4, generator=torch.Generator().manual_seed(seed), record=[Samples(every=4)],
            output_type="pt",
        )  # fmt: skip
        states.append(torch.from_numpy(output.profile["samples"].values[0]))
    assert result["ssim"] == pytest.approx(structural_similarity(*states).tolist(), abs=1e-6)
    assert len(result["attention_distance"]) == len(result["timestep"]) == 1
    assert result["attention_distance"][0] > 0
    same = client.predict(label=1, seed=1, steps=4, every=4, api_name="/compare")
    assert (same["ssim"], same["attention_distance"]) == ([1.0], [0.0])


def test_a_sweep_and_a_figure_are_of_the_asked_size(client):
    sweep = client.predict(label=[], to=["Male"], steps=10, api_name="/sweep")
    assert [len(sweep[name]) for name in ("step", "share", "ssim", "index")] == [10, 10, 3, 3]
    assert sweep["share"] == [i / 10 for i in range(10)]
    figure = client.predict(name="ssim-trajectory", seeds=1, steps=10, api_name="/experiment_figure")
    assert {"data", "layout"} <= set(figure)


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("plan", {"steps": 1.5}, "whole number from 1 to 1000, got 1.5"),
        ("plan", {"steps": 10**9}, "from 1 to 1000"),
        ("plan", {"steps": "x"}, "got 'x'"),
        ("plan", {"seed": True}, "whole number from 0"),
        ("plan", {"model": 0}, "offered here, got 0;"),
        ("plan", {"layers": ["mid_block.resnets.0", "mid_block.resnets.1"]}, "several of mid"),
        ("plan", {"seed": -1}, "whole number from 0"),
        ("plan", {"label": ["Hat"]}, "got 'Hat'; available: "),
        ("plan", {"label": {"Hat": 1}}, "something else"),
        ("plan", {"layers": ["nowhere"]}, "got 'nowhere'; available"),
        ("plan", {"layers": ["a"] * 99}, "at most 6"),
        ("plan", {"gradients": 3}, "yes or no"),
        ("plan", {"model": "/etc"}, "offered here, got '/etc'"),
        ("plan", {"model": "no labels", "label": 1}, "this model has no labels, got 1"),
        ("profile", {"every": 0}, "from 1 to"),
        ("sweep", {"label": 1, "to": 1}, "another label"),
        ("sweep", {"steps": 1000}, "from 10 to 100"),
        ("experiment_figure", {"name": "../etc"}, "got '../etc'; available"),
        ("experiment_figure", {"seeds": 100}, "from 1 to 8"),
    ],
)
def test_what_cannot_be_is_told_without_python_s_words(client, endpoint, arguments, message):
    with pytest.raises(AppError) as refused:
        client.predict(**arguments, api_name=f"/{endpoint}")
    assert message in str(refused.value)
    assert not any(word in str(refused.value) for word in ("Error", "Traceback", "int()", "NoneType"))


# What a program may send by plain HTTP: a route, a body, and what it is told.
MALFORMED = [
    ("call/plan", b"", "in JSON"), ("call/plan", b"label=Male", "in JSON"), ("call/plan", b"\xff\xfe{}", "in JSON"),
    ("call/plan", b'{"data": [1,', "in JSON"), ("call/plan", b"[]", "in JSON"), ("call/plan", b"null", "in JSON"),
    ("call/plan", b"[" * 100_000, "in JSON"), ("call/plan", b'{"data": ' * 90_000, "in JSON"),
    ("call/plan", b'{"data": [' + b"9" * 5000 + b"]}", "in JSON"),
    ("call/plan", b"{}", "data: expected the list"), ("call/plan", b'{"data": null}', "data: expected the list"),
    ("call/plan", b'{"data": {"steps": 4}}', "data: expected the list"),
    ("call/plan", b'{"data": "Male"}', "data: expected the list"),
    ("call/plan", b'{"data": [["Male"]]}', "expected a list of 7 arguments, got 1"),
    ("run/plan", b'{"data": []}', "expected a list of 7 arguments, got 0"),
    ("call/profile", b'{"fn_index": 0, "data": []}', "expected a list of 7 arguments, got 0"),
    ("call/nothing", b'{"data": []}', "Available: plan, profile"),
    ("call/sample", b'{"data": []}', "Available: plan, profile"),
    ("queue/join", b'{"data": [], "fn_index": 99999}', "Available: plan, profile"),
    ("queue/join", b'{"data": [], "fn_index": "x"}', "Available: plan, profile"),
    ("queue/join", b'{"data": [], "session_hash": ["x"], "fn_index": [0]}', "Available: plan, profile"),
    ("call/plan", b'{"data": [1,1,1,1,1,1,1], "session_hash": 5}', "session_hash: expected"),
    ("call/plan", b'{"data": [1,1,1,1,1,1,1], "oauth_token": 5, "session_hash": "x"}', "of another kind"),
    ("queue/join", b'{"data": [1,1,1,1,1,1,1], "fn_index": 0, "event_id": {}}', "of another kind"),
    ("cancel", b'{"session_hash": "x"}', "of another kind"), ("cancel", b"3", "in JSON"),
    ("call/v2/plan", b'{"stepz": 4}', "arguments out of label, seed, steps"), ("call/v2/plan", b"[1]", "in JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "body", "message"), MALFORMED)
def test_a_malformed_request_is_told_in_a_sentence(client, route, body, message):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{client.src}gradio_api/{route}", content=body, headers=headers, timeout=60)
    assert 400 <= answer.status_code < 500
    told = answer.json()["detail"]
    assert message in told
    for word in ("Input should be", "type", "loc", "Error", "Traceback", "Internal", "fn_index", str(Path.home())):
        assert word not in told


def test_named_arguments_are_taken_by_plain_http(client):
    address = f"{client.src}gradio_api/call/v2/plan"
    job = httpx.post(address, json={"label": ["Male"], "steps": 4, "every": 2}, timeout=60).json()["event_id"]
    news = httpx.get(f"{address}/{job}", timeout=60).text
    (plan,) = json.loads(news.partition("event: complete\ndata: ")[2].partition("\n")[0])
    assert plan == {**client.predict(label=["Male"], steps=4, every=2, api_name="/plan"), "seconds": plan["seconds"]}


def test_no_answer_names_where_the_files_lie(client, tmp_path):
    """By plain HTTP, as a program without Gradio's client: the page, an upload, a profile, its file, refusals."""
    places = [str(Path(get_upload_folder())), str(Path(get_upload_folder()).resolve())]
    told = []

    def ask(method, route, **options):
        answer = httpx.request(method, f"{client.src}{route}", timeout=600, **options)
        told.append(answer.text)
        return answer

    for route in ("", "config", "gradio_api/info", "gradio_api/startup-events"):
        ask("GET", route)
    (sent,) = ask("POST", "gradio_api/upload", files={"files": ("a b.txt", b"mine")}).json()
    assert ask("GET", f"gradio_api/file={sent}").content == b"mine"
    data = [["Male"], 7, 4, 2, None, False, ""]
    job = ask("POST", "gradio_api/call/profile", json={"data": data}).json()["event_id"]
    news = ask("GET", f"gradio_api/call/profile/{job}").text
    (file,) = json.loads(news.partition("event: complete\ndata: ")[2].partition("\n")[0])
    assert file["orig_name"] == "profile.zip"
    assert file["path"].startswith("files/")
    assert file["url"] == f"{client.src}gradio_api/file={file['path']}"
    (tmp_path / "profile.zip").write_bytes(httpx.get(file["url"], timeout=60).content)
    assert read_archive(tmp_path / "profile.zip", tmp_path / "profile").provenance["seeds"] == [7]
    for path in ("files/nothing", "files/%2E%2E/%2E%2E/etc/passwd", "files/", f"files/{'x' * 300}"):
        assert ask("GET", f"gradio_api/file={path}").status_code in (403, 404)
    ask("POST", "gradio_api/call/plan", json={"data": [{"path": "files/x"}, *data[1:]]})
    assert [place for place in places for text in told if place in text] == []


def test_handlers_of_the_page_are_no_endpoints(client):
    for name in ("sample", "upload", "show", "download"):
        with pytest.raises(ValueError, match="Cannot find a function"):
            client.predict(api_name=f"/{name}")


def test_the_endpoints_are_tools_where_mcp_is_installed(offered, tmp_path):
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")

    async def use(url):
        async with http.streamablehttp_client(url) as (read, write, _), mcp.ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            plan = await session.call_tool("plan", {"label": ["Male"], "steps": 4, "every": 2})
            refused = await session.call_tool("plan", {"steps": 0})
            profile = await session.call_tool("profile", {"label": ["Male"], "steps": 4, "every": 2})
            return tools, plan, refused, profile.content[0].text

    app = server.build({"faces": offered["faces"]}, settings.Limits(), steps=4, every=2, gradients=False)
    try:
        tools, plan, refused, told = asyncio.run(use(f"{app.start(quiet=True)}gradio_api/mcp/"))
        (tmp_path / "profile.zip").write_bytes(httpx.get(re.search(r"http://\S+\.zip", told)[0]).content)
    finally:
        app.demo.close()
    assert get_upload_folder() not in told
    assert read_archive(tmp_path / "profile.zip", tmp_path / "profile").provenance["seeds"] == [7]
    assert {f"/{tool.name}" for tool in tools} == ENDPOINTS
    for tool in tools:
        assert "seed" in tool.inputSchema["properties"]
        assert "request" not in tool.inputSchema["properties"]
    assert not plan.isError
    assert "backward_passes" in plan.content[0].text
    assert refused.isError
    assert "expected a whole number from 1 to 1000, got 0" in refused.content[0].text
