"""One visitor's session, and how errors are told."""

import inspect
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.settings import Settings
from diffusers_xai.profile.pictures import to_rgb


_logger = logging.getLogger(__name__)
SERVER_MESSAGE = "Something went wrong on the server. Please try again with other settings."


class Session:
    """What belongs to one visitor: at most two profiles, and files that vanish with the session."""

    def __init__(self) -> None:
        self.profile: DiffusionProfile | None = None
        self.kept: DiffusionProfile | None = None
        self.blocks: dict[str, list[str]] = {}  # of the model that made the profile
        self.dark = False  # the page's theme
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


def enlarged(sample: np.ndarray, size: int = 320, region: np.ndarray | None = None) -> np.ndarray:
    """A `(C, H, W)` image in [-1, 1] -> RGB, its pixels as squares, those of the `(H, W)` region tinted orange."""
    rgb = to_rgb(sample)
    if region is not None and region.shape == rgb.shape[:2]:
        rgb = np.where(region[..., None], 0.65 * rgb + 0.35 * np.array([213, 94, 0]), rgb).astype(np.uint8)
    image = Image.fromarray(rgb)
    return np.asarray(image.resize((size, size * image.height // image.width), Image.Resampling.NEAREST))
