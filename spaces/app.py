"""The interface: `python spaces/app.py`, `diffusers-xai app`, or a Space that holds this folder and the package."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
ZERO_GPU = "SPACES_ZERO_GPU" in os.environ
if ZERO_GPU:
    import spaces  # before torch, which it patches

import gradio as gr  # noqa: E402
from space_controls import Controls  # noqa: E402
from space_events import Events  # noqa: E402
from space_layout import build_layout  # noqa: E402
from space_models import Model, load_models  # noqa: E402
from space_runs import CANCELLED, Stopped, run_stream  # noqa: E402
from space_session import readable_errors  # noqa: E402
from space_settings import Limits, Settings  # noqa: E402
from space_theme import CSS, THEME  # noqa: E402


GPU_SECONDS = 60.0  # of a visitor's daily quota, at most, for one run


def build(models: dict[str, Model], limits: Limits, **defaults: Any) -> gr.Blocks:
    """The app.

    Args:
        models (`dict[str, Model]`): What visitors can choose from; they see the first one first.
        limits (`Limits`): What a visitor may ask for.
        defaults: Fields of `Settings`.
    """
    if ZERO_GPU:
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
        "blocked_paths": [str(Path(__file__).parent), str(Path.home())],
    }


def main(argv: list[str] | None = None) -> None:
    """Starts the server and stays until it is stopped.

    Raises:
        CommandError: If a checkpoint cannot be loaded.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="port of 127.0.0.1. Default: a free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="a public link for three days")
    parser.add_argument(
        "--checkpoint", action="append", default=[], metavar="DIR|HUB_ID",
        help="pipeline that visitors can choose beside the embedded one; may be given several times",
    )  # fmt: skip
    args = parser.parse_args(argv)
    limits = Limits()
    demo = build(load_models(args.checkpoint), limits)
    demo.launch(server_port=args.port, share=args.share, **launch_options(limits))


if __name__ == "__main__":
    main()
