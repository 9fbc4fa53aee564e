"""Values of options: their forms and ranges, and the options that the commands which sample share."""

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from diffusers_xai.checkpoints import demo_checkpoint, embedded_checkpoints, name_of_embedded


SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
DTYPES = ("float32", "float16", "bfloat16")
MAX_CHANNEL = "max"
MAX_SIDE = 2**16  # pixels
MAX_SEED = 2**63 - 1
_MAX_COUNT = 1_000_000
_MAX_GUIDANCE = 1000.0
_SHOWN = 40  # characters


def integer(low: int, high: int) -> Callable[[str], int]:
    """An integer from `low` to `high`, for argparse."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected an integer in {low}..{high}, got {_shown(text)}")
        return int(text)

    return parse


def _shown(text: str) -> str:
    """A value in an error: its middle left out where it is long."""
    return repr(text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}…{text[-_SHOWN:]}")


count = integer(1, _MAX_COUNT)
seed = integer(0, MAX_SEED)
threads = integer(1, max(256, os.cpu_count() or 1))


def guidance(text: str) -> float:
    """A guidance scale, for argparse."""
    try:
        value = float(text) if re.fullmatch(r"[0-9.eE+-]+", text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= _MAX_GUIDANCE:
        raise argparse.ArgumentTypeError(f"expected a number in 0..{_MAX_GUIDANCE:g}, got {_shown(text)}")
    return value


def nonempty(text: str) -> str:
    """A text that says something, for argparse."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a text, got {_shown(text)}")
    return text


def checkpoint(text: str) -> str:
    """A folder, a Hub id, or the name of a checkpoint inside the package, for argparse."""
    embedded = nonempty(text) in embedded_checkpoints() and not Path(text).is_dir()
    return demo_checkpoint(text) if embedded else text


def spoken(checkpoint: str) -> str:
    """How a checkpoint is called: by its name if it lies inside the package."""
    return name_of_embedded(checkpoint) or checkpoint


def path(text: str) -> Path:
    """The path of a file or folder, for argparse."""
    return Path(nonempty(text))


def revision(text: str) -> str:
    """A branch, tag or commit of a repository, for argparse."""
    if not re.fullmatch(r"[\w.][\w./-]*", text) or ".." in text or "//" in text or text.endswith((".", "/", ".lock")):
        raise argparse.ArgumentTypeError(f"expected a branch, tag or commit, got {_shown(text)}")
    return text


def ablation(text: str) -> tuple[str, tuple[int | str, ...]]:
    """`"downs.1.3:55,max"` -> `("downs.1.3", (55, "max"))`, for argparse."""
    layer, _, channels = text.rpartition(":")
    names = channels.split(",")
    if not layer.strip() or not all(name == MAX_CHANNEL or re.fullmatch(r"[0-9]{1,6}", name) for name in names):
        raise argparse.ArgumentTypeError(
            f"expected LAYER:CHANNEL[,CHANNEL…], channels as indices from 0 on or {MAX_CHANNEL}, got {_shown(text)}"
        )
    return layer, tuple(name if name == MAX_CHANNEL else int(name) for name in names)


def switch(text: str) -> tuple[int, str]:
    """`"500:0011"` -> `(500, "0011")`, for argparse."""
    step, colon, label = text.partition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,6}", step) or not label.strip():
        raise argparse.ArgumentTypeError(f"expected STEP:LABEL, such as 500:0011, or STEP:PROMPT, got {_shown(text)}")
    return int(step), label


def add_pipeline_options(parser: argparse.ArgumentParser, default: str | None, about: str) -> None:
    """Adds the options that say which pipeline samples, where, and with how many threads.

    Args:
        parser (`argparse.ArgumentParser`): The command's.
        default (`str`, *optional*): Value of `--checkpoint` where none is given.
        about (`str`): That value in words.
    """
    add = parser.add_argument
    add(
        "--checkpoint", type=checkpoint, metavar="DIR|HUB_ID", default=default,
        help="pipeline to sample with, or a name inside the package: lfw-64 (photographed faces at 64 px), lfw-32 (at"
        " 32 px, five times as fast), drawn-32 (drawn faces) or drawn-text-32 (drawn faces by captions). Default:"
        f" {about}",
    )  # fmt: skip
    add("--revision", type=revision, help="branch, tag or commit of a --checkpoint on the Hub")
    add("--scheduler", choices=SCHEDULERS, help="how to sample. Default: the checkpoint's own scheduler")
    add("--device", type=nonempty, default="cpu", help="where to compute, such as cuda or mps. Default: cpu")
    add(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads. Default: 1 for the models inside the package, which are too small for more, else all cores",
    )
