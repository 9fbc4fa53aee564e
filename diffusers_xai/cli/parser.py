"""The parser of the whole command line."""

import argparse

from diffusers_xai.cli import app, audit, completion, experiment, profile, push
from diffusers_xai.cli.base import PROGRAM, Parser, add_common_options


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog=PROGRAM, description="Shows how a diffusion model forms an image, step by step.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and leave")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in (profile, experiment, audit, app, push, completion):
        command.add_command(commands)
    for subparser in commands.choices.values():
        add_common_options(subparser)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from importlib import metadata

        try:
            version = metadata.version(PROGRAM)
        except metadata.PackageNotFoundError:  # run from a clone
            version = "0 (not installed)"
        print(f"{parser.prog} {version}")
        parser.exit()
