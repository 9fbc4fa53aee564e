"""The endpoints for programs, called with Gradio's client: their values against direct computations."""

import asyncio

import pytest
import torch
from diffusers import DDPMScheduler
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


def test_handlers_of_the_page_are_no_endpoints(client):
    for name in ("sample", "upload", "show", "download"):
        with pytest.raises(ValueError, match="Cannot find a function"):
            client.predict(api_name=f"/{name}")


def test_the_endpoints_are_tools_where_mcp_is_installed(offered):
    mcp = pytest.importorskip("mcp")
    http = pytest.importorskip("mcp.client.streamable_http")

    async def use(url):
        async with http.streamablehttp_client(url) as (read, write, _), mcp.ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            plan = await session.call_tool("plan", {"label": ["Male"], "steps": 4, "every": 2})
            refused = await session.call_tool("plan", {"steps": 0})
            return tools, plan, refused

    app = server.build({"faces": offered["faces"]}, settings.Limits(), steps=4, every=2, gradients=False)
    try:
        tools, plan, refused = asyncio.run(use(f"{app.start(quiet=True)}gradio_api/mcp/"))
    finally:
        app.demo.close()
    assert {f"/{tool.name}" for tool in tools} == ENDPOINTS
    for tool in tools:
        assert "seed" in tool.inputSchema["properties"]
        assert "request" not in tool.inputSchema["properties"]
    assert not plan.isError
    assert "backward_passes" in plan.content[0].text
    assert refused.isError
    assert "expected a whole number from 1 to 1000, got 0" in refused.content[0].text
