"""The command line: `diffusers-xai profile …`, `experiment …`, `app`, `push …`.

Every subcommand is one module that adds its parser and runs it. A `CommandError`, or an error of the library that says
what is wrong with the request, becomes one line on stderr and exit code 2.
"""

import argparse
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import diffusers
from safetensors import SafetensorError

from diffusers_xai.cli import app, experiment, profile, push
from diffusers_xai.cli.base import PROGRAM, CommandError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: The exit code: 0, 2 after an error that the user can mend, 130 after an interruption.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    try:
        args = _parser().parse_args(argv)
        with _quiet(unless=debug):
            args.run(args)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (CommandError, ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        if debug:
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"{PROGRAM}: error: {' '.join(str(text).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Shows how a diffusion model forms an image, step by step.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    profile.add_command(commands)
    experiment.add_command(commands)
    app.add_command(commands)
    push.add_command(commands)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:  # run from a clone
        return "0 (not installed)"


@contextmanager
def _quiet(unless: bool) -> Iterator[None]:
    """Silences the warnings of libraries, and diffusers' bar over the parts of a pipeline."""
    logging = diffusers.utils.logging
    level = logging.get_verbosity()
    with warnings.catch_warnings():
        if not unless:
            warnings.simplefilter("ignore")
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            logging.enable_progress_bar()
