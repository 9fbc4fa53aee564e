"""The app as a server: what it is made of, where it computes, and how it is served."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from diffusers_xai.app.api import Api  # noqa: E402
from diffusers_xai.app.controls import Controls  # noqa: E402
from diffusers_xai.app.events import Events  # noqa: E402
from diffusers_xai.app.example import example  # noqa: E402
from diffusers_xai.app.experiments import ExperimentTab  # noqa: E402
from diffusers_xai.app.guard import Guard, Presence  # noqa: E402
from diffusers_xai.app.layout import build_layout  # noqa: E402
from diffusers_xai.app.log import bounded_log  # noqa: E402
from diffusers_xai.app.models import DEMO, Model, load_models, relate  # noqa: E402
from diffusers_xai.app.places import Discretion, Places  # noqa: E402
from diffusers_xai.app.prompts import PromptModel, load_prompt_model  # noqa: E402
from diffusers_xai.app.requests import HANDLERS  # noqa: E402
from diffusers_xai.app.runs import CANCELLED, Stopped, run_stream  # noqa: E402
from diffusers_xai.app.session import Result, readable_errors  # noqa: E402
from diffusers_xai.app.settings import Limits, SettingsError  # noqa: E402
from diffusers_xai.app.showing import Showing  # noqa: E402
from diffusers_xai.app.theme import CSS, HEAD, THEME  # noqa: E402
from diffusers_xai.app.visitors import Visitors  # noqa: E402
from diffusers_xai.app.words import WordsTab  # noqa: E402
from diffusers_xai.app.workspace import workspace  # noqa: E402


GPU_SECONDS = 60.0  # of a visitor's daily quota, at most, for one run


@dataclass(eq=False)
class App:
    """The interface and what stands around it.

    Args:
        demo (`gradio.Blocks`): The page and its handlers.
        limits (`Limits`): What a visitor may ask for.
        presence (`Presence`): Who listens for jobs.
        folder (`Path`, *optional*): Where all files lie.
    """

    demo: gr.Blocks
    limits: Limits
    presence: Presence
    folder: Path | None = None

    def start(self, **options: Any) -> str:
        """Serves it, in threads of its own.

        Args:
            options: Passed to `gradio.Blocks.launch`, such as `server_port`.

        Returns:
            `str`: The address.
        """
        places = Places(Path(self.demo.GRADIO_CACHE))
        guard = Middleware(
            Guard, demo=self.demo, presence=self.presence, limits=self.limits, places=places,
            uploads=None if self.folder is None else places.folder,
        )  # fmt: skip
        app, url, _ = self.demo.launch(
            css=CSS,
            head=HEAD,
            theme=THEME,
            show_error=False,
            max_file_size=self.limits.upload,
            state_session_capacity=self.limits.sessions,
            footer_links=[],
            blocked_paths=[str(Path(__file__).parents[1]), str(Path.home())],
            app_kwargs={"middleware": [guard, Middleware(Discretion, places=places)], "exception_handlers": HANDLERS},
            prevent_thread_lock=True,
            mcp_server=find_spec("mcp") is not None,
            **options,
        )
        app.state_holder = Visitors(self.limits.held)
        app.state_holder.set_blocks(self.demo)
        return url


def build(
    models: dict[str, Model],
    limits: Limits,
    folder: Path | None = None,
    shown: Result | None = None,
    prompted: PromptModel | None = None,
    **defaults: Any,
) -> App:
    """The app.

    Args:
        models (`dict[str, Model]`): What visitors can choose from; they see the first one first.
        limits (`Limits`): What a visitor may ask for.
        folder (`Path`, *optional*): Where visitors' files lie; the system's place for them by default.
        shown (`Result`, *optional*): What a fresh page shows.
        prompted (`PromptModel`, *optional*): Whose words are asked about; the page has no place for them without.
        defaults: Fields of `Settings`.
    """
    every: dict[str, Any] = {**models, **({} if prompted is None else {prompted.name: prompted})}
    if "SPACES_ZERO_GPU" in os.environ:
        limits = replace(limits, max_seconds=min(limits.max_seconds, GPU_SECONDS))
        stream, parallel = _stream_of_gpu(every, limits), 1
    else:
        stream, parallel = _stream(limits), len(every)
    relate(models)
    settings = next(iter(models.values())).default(limits, **defaults)
    presence = Presence()
    with gr.Blocks(title="How a diffusion model makes a face", delete_cache=(600, 3600)) as demo:
        c = build_layout(models, settings, limits, folder, prompted is not None)
        controls = Controls(c, models, limits, **defaults)
        showing = Showing(controls, shown)
        Api(controls, stream, presence, parallel, folder).connect()  # first: its names are as they are documented
        controls.connect()
        events = Events(controls, stream, presence, parallel)
        events.connect(showing.after)
        ExperimentTab(events).connect()
        if prompted is not None:
            WordsTab(events, prompted).connect()
        showing.connect(demo)
    demo.queue(max_size=limits.queue, default_concurrency_limit=4, api_open=False)
    return App(demo, limits, presence, folder)


def _stream(limits: Limits) -> Callable[..., Iterator[Any]]:
    return lambda task, model, settings, stop, **options: run_stream(task, model, settings, limits, stop, **options)


def _stream_of_gpu(models: dict[str, Any], limits: Limits) -> Callable[..., Iterator[Any]]:
    """The same on a ZeroGPU Space, where a run is in a process of its own: only names and results go across."""
    spaces: Any = import_module("spaces")  # `spaces/app.py` has imported it before torch

    def in_worker(task: Any, name: str, settings: Any, options: dict[str, Any]) -> Iterator[Any]:
        yield from run_stream(task, models[name], settings, limits, **options)

    # Of the errors in the worker, only Gradio's own come back with their text.
    on_gpu = spaces.GPU(duration=round(limits.max_seconds))(readable_errors(in_worker))

    def stream(task: Any, model: Any, settings: Any, stop: Any, **options: Any) -> Iterator[Any]:
        with closing(on_gpu(task, model.name, settings, options)) as items:  # closing them ends the worker's run
            try:
                for item in items:
                    if stop is not None and stop.is_set():
                        raise Stopped(CANCELLED)
                    yield item
            except gr.Error as error:  # for the visitor, such as that a day's quota is used up
                raise SettingsError(error.message) from None

    return stream


def serve(
    checkpoints: Sequence[str] = (),
    port: int | None = None,
    share: bool = False,
    told: Callable[[str, str | None], None] | None = None,
) -> None:
    """Starts the server and stays until it is stopped.

    Args:
        checkpoints (`Sequence[str]`): Folders or Hub ids of pipelines that visitors can choose beside those of
            the package.
        port (`int`, *optional*): Port of 127.0.0.1; a free one from 7860 on, or `GRADIO_SERVER_PORT`, by default.
        share (`bool`, defaults to `False`): Whether Gradio's servers also give a public link for a few days.
        told (`Callable`, *optional*): Called with the address and the public link, once it is served, in place of what
            Gradio prints.

    Raises:
        ValueError: If a checkpoint cannot be loaded, or two have the same name.
    """
    limits, models = Limits(), load_models(checkpoints)
    first = next(iter(models.values()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # files are deleted then too
    with bounded_log(), workspace() as folder:
        shown = example(first, limits) if first.name == DEMO else None
        app = build(models, limits, folder, shown, load_prompt_model())
        spoken = silence if told else nullcontext
        with spoken():
            url = app.start(server_port=port, share=share)
        if told:
            told(url, app.demo.share_url)
        with spoken():
            app.demo.block_thread()


@contextmanager
def silence() -> Iterator[None]:
    """Drops what is printed: Gradio tells addresses and its end there, also where it is asked to be quiet."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
