"""One visitor's session, and the runs of the model that all visitors share."""

import gc
import inspect
import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from space_settings import Limits, Settings

from diffusers_xai import DiffusionProfile, XAIPipeline
from diffusers_xai.plots.tiles import to_rgb


_logger = logging.getLogger(__name__)
SERVER_MESSAGE = "Something went wrong on the server. Please try again with other settings."


class Stopped(Exception):
    """A run that was cancelled or took too long."""


class Session:
    """What belongs to one visitor: at most two profiles, and files that vanish with the session."""

    def __init__(self) -> None:
        self.profile: DiffusionProfile | None = None
        self.kept: DiffusionProfile | None = None
        self.settings: Settings | None = None
        self.confirmed: Settings | None = None
        self.stop = threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="diffusers-xai-")

    @property
    def folder(self) -> Path:
        """Where the session's files lie."""
        return Path(self._folder.name)

    def __deepcopy__(self, memo: dict) -> "Session":
        return Session()  # Gradio copies the first value for every visitor

    def close(self) -> None:
        """Ends a run on its way and frees all."""
        self.stop.set()
        self.profile = self.kept = None
        self._folder.cleanup()


def readable_errors(function: Callable) -> Callable:
    """What is wrong with a request is told; what is wrong with the server is logged, and told without details."""

    def shown(error: Exception) -> gr.Error:
        if isinstance(error, (ValueError, KeyError, TypeError)) and not isinstance(error, UnicodeError):
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            return gr.Error(" ".join(str(text).split())[:400], print_exception=False)
        _logger.error("request failed", exc_info=error)
        return gr.Error(SERVER_MESSAGE, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except gr.Error:
                raise
            except Exception as error:
                raise shown(error) from None

        return generator

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except gr.Error:
            raise
        except Exception as error:
            raise shown(error) from None

    return wrapper


_MODEL = threading.Lock()  # a pipeline runs once at a time: its scheduler is its own


def run_alone(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls what uses the model, after the runs of others."""
    with _MODEL:
        return function(*args, **kwargs)


def enlarged(sample: np.ndarray, size: int = 320) -> np.ndarray:
    """A `(C, H, W)` image in [-1, 1] -> RGB, its pixels as squares."""
    image = Image.fromarray(to_rgb(sample))
    return np.asarray(image.resize((size, size * image.height // image.width), Image.Resampling.NEAREST))


def sample_stream(
    pipe: XAIPipeline, settings: Settings, limits: Limits, stop: threading.Event | None
) -> Iterator[tuple[int, np.ndarray] | DiffusionProfile]:
    """Samples; yields `(steps done, x_t)` now and then, and the profile at the end.

    Raises:
        Stopped: If `stop` was set or the time is over; the text says which.
    """
    states: queue.Queue = queue.Queue()
    deadline = time.monotonic() + limits.max_seconds
    abandoned = threading.Event()

    def on_step_end(_: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if abandoned.is_set() or (stop is not None and stop.is_set()):
            raise Stopped("Cancelled: nothing was changed.")
        if time.monotonic() > deadline:
            raise Stopped(f"Stopped after {limits.max_seconds:.0f} s, the limit of this server. Ask for less.")
        states.put((step + 1, tensors["sample"][0].float().cpu().numpy()))
        return {}

    def work() -> None:
        torch.set_num_threads(1)  # more only wait for each other in a network as small as this
        try:
            with _MODEL:
                out = pipe(
                    class_labels=settings.label,
                    num_inference_steps=settings.steps,
                    generator=torch.Generator().manual_seed(settings.seed),
                    record=settings.specs(),
                    edits=settings.edits(),
                    max_bytes=limits.max_bytes,
                    callback_on_step_end=on_step_end,
                    output_type="pt",
                )
            states.put(out.profile)
        except BaseException as error:
            states.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item = states.get()
            while not states.empty() and isinstance(item, tuple):
                item = states.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if not isinstance(item, tuple):
                return
            time.sleep(0.15)
    finally:
        abandoned.set()
        gc.collect()  # a run's objects refer to each other: earlier profiles would stay for a while
