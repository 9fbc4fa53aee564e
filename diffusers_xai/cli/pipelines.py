"""What the commands that sample share: which pipeline, where, with how many threads."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import torch

from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.cli.base import CommandError
from diffusers_xai.pipelines import XAIPipeline


SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
# Left, top, right, bottom in the faces of the model inside the package.
EYES = [7, 11, 25, 17]
FACE = [6, 8, 26, 28]


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return int(text)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that [`load_pipeline`] and [`num_threads`] read."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR|HUB_ID", help="pipeline to sample with. Default: the model inside the package")
    add("--revision", help="revision of the checkpoint on the Hub")
    add("--scheduler", choices=SCHEDULERS, help="how to sample. Default: the checkpoint's own scheduler")
    add("--device", default="cpu", help="where to compute, such as cuda or mps. Default: cpu")
    add(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads. Default: 1 for the model inside the package, which is too small for more, else all cores",
    )
    add("--debug", action="store_true", help="show tracebacks and the warnings of libraries")


def open_checkpoint(checkpoint: str | None = None, revision: str | None = None) -> XAIPipeline:
    """The pipeline of a folder or a Hub id, or else the one inside the package.

    Raises:
        CommandError: if there is no such checkpoint, or it cannot be loaded.
    """
    checkpoint = checkpoint or demo_checkpoint()
    # What is not the form of a Hub id can only be a folder.
    is_path = checkpoint.startswith((".", "~", os.sep)) or checkpoint.count("/") != 1
    if is_path and not Path(checkpoint).is_dir():
        raise CommandError(f"no checkpoint at {checkpoint}: expected a folder or a Hub id such as user/model")
    try:
        return XAIPipeline.from_pretrained(checkpoint, revision=revision)
    except Exception as error:  # any library's: a folder of another kind, no network, corrupt weights
        raise CommandError(f"cannot load the checkpoint {checkpoint}: {error}") from error


def load_pipeline(args: argparse.Namespace) -> XAIPipeline:
    """The pipeline that the options of [`add_pipeline_options`] name.

    Raises:
        CommandError: if the device cannot be used, or there is no such checkpoint.
    """
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {args.device} cannot be used: {error}") from error
    pipe = open_checkpoint(args.checkpoint, args.revision)
    if args.scheduler:
        pipe.scheduler = getattr(diffusers, SCHEDULERS[args.scheduler]).from_config(pipe.scheduler.config)
    return pipe.to(args.device)


@contextmanager
def num_threads(args: argparse.Namespace) -> Iterator[None]:
    """Computes with as many threads as asked for.

    By default with one for the model inside the package: threads that wait for each other take longer than one alone
    when the network is small and the cores are shared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or (before if args.checkpoint else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
