"""What the commands that sample share: which pipeline, where, with how many threads."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers
import torch

from diffusers_xai.cli.base import CommandError
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.checkpoint import open_checkpoint


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


def load_pipeline(args: argparse.Namespace) -> XAIPipeline:
    """The pipeline that the options of [`add_pipeline_options`] name.

    Raises:
        CommandError, ValueError: if the device cannot be used, or there is no such checkpoint.
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
