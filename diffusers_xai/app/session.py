"""One visitor's session, and how errors are told."""

import inspect
import logging
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from diffusers_xai import DiffusionProfile
from diffusers_xai.app.runs import CANCELLED, Stopped
from diffusers_xai.app.settings import Settings, SettingsError
from diffusers_xai.app.values import whole
from diffusers_xai.profile.pictures import to_rgb


_logger = logging.getLogger(__name__)
SERVER_MESSAGE = "Something went wrong on the server. Please try again with other settings."
MAX_KEPT = 4
BUSY = "You already have a run in progress: wait for it, or cancel it."


class Busy(SettingsError):
    """Another run of the visitor's is in progress."""


@dataclass(eq=False)
class Result:
    """A run that is shown or kept.

    Args:
        profile ([`DiffusionProfile`]): What was recorded.
        settings (`Settings`, *optional*): How it was made, if that can be told in the controls' terms.
        blocks (`dict[str, list[str]]`): The blocks of the model that made it, if that is offered.
        caption (`str`): What it shows, in words.
        is_shared (`bool`): Whether it is the same for all visitors, and costs none of them memory.
        id (`str`): By which the page tells it from others, whose captions may be equal.
    """

    profile: DiffusionProfile
    settings: Settings | None
    blocks: dict[str, list[str]]
    caption: str
    is_shared: bool = False
    id: str = field(init=False, default_factory=lambda: uuid.uuid4().hex)

    @property
    def region(self) -> np.ndarray | None:
        """The region that was asked about: bool `(H, W)`."""
        return None if self.settings is None else self.settings.mask_array()

    @property
    def words(self) -> str:
        """What the page says of it while it shows it."""
        return f"{'An example' if self.is_shared else 'Shown'}: {self.caption}."

    @cached_property
    def nbytes(self) -> int:
        """Size of the arrays."""
        return 0 if self.is_shared else sum(array.nbytes for array in self.profile.values())


class Session:
    """What belongs to one visitor: some runs, and files that vanish with the session.

    Args:
        parent (`Path`, *optional*): Where the session's folder is made; the system's place for temporary files by
            default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self.parent = parent
        self.result: Result | None = None  # what is shown
        self.kept: list[Result] = []  # the newest first
        self.dark = False  # the page's theme
        self.region: tuple[str, str] | None = None  # (model, mask as in Settings), where nothing new is painted
        self.confirmed: Any = None  # the long run that was asked for once
        self._asked = 0  # the number of the last run that a button has asked for
        self._cancelled = -1  # the last of those that are not wanted any more
        self._turn = threading.Condition()
        self._under_way: int | None = None  # the number of the run that has its turn
        self._folder: tempfile.TemporaryDirectory | None = None

    def __deepcopy__(self, memo: dict) -> "Session":
        return Session(self.parent)  # Gradio copies the first value for every visitor

    @property
    def folder(self) -> Path:
        """Where the session's files lie."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="session-", dir=self.parent, ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def new_folder(self) -> Path:
        """A path for the one opened file that a session keeps; what it kept before is deleted."""
        for earlier in self.folder.glob("opened-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        return self.folder / f"opened-{uuid.uuid4().hex[:8]}"

    @property
    def is_used(self) -> bool:
        """Whether there is something that the visitor would miss."""
        return self._under_way is not None or self.nbytes > 0

    @property
    def nbytes(self) -> int:
        """Size of the runs."""
        results = {id(result): result for result in (self.result, *self.kept) if result is not None}
        return sum(result.nbytes for result in results.values())

    def seen(self, shown: Any) -> Result:
        """The run that the page shows, by the id that it sends.

        Raises:
            SettingsError: If there is none, or a newer one is about to be shown.
        """
        result = self.result
        if result is None:
            raise SettingsError("Sample something first.")
        if shown != result.id:
            raise SettingsError("A newer run is about to be shown: look at it first.")
        return result

    def ask_about(self, settings: Settings) -> None:
        """Takes the region of settings for what is asked next, where nothing new is painted."""
        self.region = None if settings.mask is None else (settings.model, settings.mask)

    def keep(self, result: Result) -> None:
        """Keeps a run, and forgets the oldest of what was kept beyond the most."""
        if result not in self.kept:
            self.kept = [result, *self.kept][:MAX_KEPT]

    def ask(self) -> int:
        """A number for the run that a button asks for: by it, it is cancelled, even while it waits its turn."""
        self._asked += 1
        return self._asked

    def cancel(self) -> None:
        """Ends every run that was asked for, and none that will be."""
        with self._turn:
            self._cancelled = self._asked
            self._turn.notify_all()

    def is_cancelled(self, run: int) -> bool:
        """Whether a run is not wanted any more."""
        return run <= self._cancelled

    @contextmanager
    def running(self, run: Any) -> Iterator[int]:
        """One run at a time; the end of one that was cancelled is waited for.

        Args:
            run (`int`): Its number, from `ask`, as the page sends it.

        Raises:
            Busy: If another one is in progress.
            Stopped: If it was cancelled while it waited.
            SettingsError: If that is no number.
        """
        number = whole(run, "Run", 0, 2**53)
        self._asked = max(self._asked, number)  # the page may be older than the session, if that was forgotten
        with self._turn:
            self._turn.wait_for(lambda: self.is_cancelled(number) or not self._is_ending)
            if self._under_way is not None:
                raise Stopped(CANCELLED) if self._is_ending else Busy(BUSY)
            self._under_way = number
        try:
            yield number
        finally:
            with self._turn:
                self._under_way = None
                self._turn.notify_all()

    @property
    def _is_ending(self) -> bool:
        """Whether a run is in progress that was cancelled."""
        return self._under_way is not None and self.is_cancelled(self._under_way)

    def close(self) -> None:
        """Ends the current run and frees all."""
        self.cancel()
        self.result, self.kept = None, []
        if self._folder is not None:
            self._folder.cleanup()


def readable_errors(function: Callable) -> Callable:
    """What is wrong with a request is told; what is wrong with the server is logged, and told without details."""

    def shown(error: Exception) -> gr.Error:
        if isinstance(error, SettingsError):
            return gr.Error(" ".join(str(error).split())[:400], duration=None, print_exception=False)
        _logger.error("request failed", exc_info=error)
        return gr.Error(SERVER_MESSAGE, duration=None, print_exception=False)

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
    """A `(C, H, W)` image in [-1, 1] -> RGB, its longer side `size`, its pixels as squares, the region tinted orange.

    Args:
        sample (`np.ndarray` of shape `(C, H, W)`): The image.
        size (`int`, defaults to 320): Pixels of the result's longer side.
        region (`np.ndarray` of shape `(H, W)`, bool, *optional*): Pixels to tint.
    """
    rgb = to_rgb(sample)
    if region is not None and region.shape == rgb.shape[:2]:
        rgb = np.where(region[..., None], 0.65 * rgb + 0.35 * np.array([213, 94, 0]), rgb).astype(np.uint8)
    image = Image.fromarray(rgb)
    scale = size / max(image.size)
    shape = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return np.asarray(image.resize(shape, Image.Resampling.NEAREST))
