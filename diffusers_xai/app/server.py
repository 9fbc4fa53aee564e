"""The app as a server: what it is made of, where it computes, and how it is served."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr  # noqa: E402

from diffusers_xai.app.controls import Controls  # noqa: E402
from diffusers_xai.app.events import Events  # noqa: E402
from diffusers_xai.app.layout import build_layout  # noqa: E402
from diffusers_xai.app.models import Model, load_models  # noqa: E402
from diffusers_xai.app.runs import CANCELLED, Stopped, run_stream  # noqa: E402
from diffusers_xai.app.session import readable_errors  # noqa: E402
from diffusers_xai.app.settings import Limits, Settings  # noqa: E402
from diffusers_xai.app.theme import CSS, THEME  # noqa: E402


GPU_SECONDS = 60.0  # of a visitor's daily quota, at most, for one run


def build(models: dict[str, Model], limits: Limits, **defaults: Any) -> gr.Blocks:
    """The app.

    Args:
        models (`dict[str, Model]`): What visitors can choose from; they see the first one first.
        limits (`Limits`): What a visitor may ask for.
        defaults: Fields of `Settings`.
    """
    if "SPACES_ZERO_GPU" in os.environ:
        limits = replace(limits, max_seconds=min(limits.max_seconds, GPU_SECONDS))
        stream, parallel = _stream_of_gpu(models, limits), 1
    else:
        stream, parallel = _stream(limits), len(models)
    settings = next(iter(models.values())).default(limits, **defaults)
    with gr.Blocks(title="How a diffusion model makes a face", delete_cache=(600, 3600)) as demo:
        c = build_layout(models, settings, limits)
        Events(Controls(c, models, limits, **defaults), stream, parallel).connect(demo)
    return demo.queue(max_size=limits.queue, default_concurrency_limit=4)


def _stream(limits: Limits) -> Callable[..., Iterator[Any]]:
    return lambda task, model, settings, stop: run_stream(task, model, settings, limits, stop)


def _stream_of_gpu(models: dict[str, Model], limits: Limits) -> Callable[..., Iterator[Any]]:
    """The same on a ZeroGPU Space, where a run is in a process of its own: only names and results go across."""
    spaces: Any = import_module("spaces")  # `spaces/app.py` has imported it before torch

    def in_worker(task: Any, name: str, settings: Settings) -> Iterator[Any]:
        yield from run_stream(task, models[name], settings, limits)

    # Of the errors in the worker, only Gradio's own come back with their text.
    on_gpu = spaces.GPU(duration=round(limits.max_seconds))(readable_errors(in_worker))

    def stream(task: Any, model: Model, settings: Settings, stop: Any) -> Iterator[Any]:
        with closing(on_gpu(task, model.name, settings)) as items:  # closing them ends the worker's run
            for item in items:
                if stop.is_set():
                    raise Stopped(CANCELLED)
                yield item

    return stream


def launch_options(limits: Limits) -> dict[str, Any]:
    """How the app is served: errors without details, no file outside its own."""
    return {
        "css": CSS,
        "theme": THEME,
        "show_error": False,
        "max_file_size": limits.upload,
        "state_session_capacity": limits.sessions,
        "footer_links": [],
        "blocked_paths": [str(Path(__file__).parents[1]), str(Path.home())],
    }


def serve(checkpoints: Sequence[str] = (), port: int | None = None, share: bool = False) -> None:
    """Starts the server and stays until it is stopped.

    Args:
        checkpoints (`Sequence[str]`): Folders or Hub ids of pipelines that visitors can choose beside the embedded
            one.
        port (`int`, *optional*): Port of 127.0.0.1; a free one from 7860 on, or `GRADIO_SERVER_PORT`, by default.
        share (`bool`, defaults to `False`): Whether Gradio's servers also give a public link for a few days.

    Raises:
        ValueError: If a checkpoint cannot be loaded, or two have the same name.
    """
    limits = Limits()
    demo = build(load_models(checkpoints), limits)
    demo.launch(server_port=port, share=share, **launch_options(limits))
