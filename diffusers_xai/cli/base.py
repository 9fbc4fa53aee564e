"""What all subcommands share: their name, how they fail, how they speak."""

import sys


PROGRAM = "diffusers-xai"


class CommandError(Exception):
    """A request that cannot be met; the text is for the user."""


def say(text: str) -> None:
    """Tells how far the work is, beside the output."""
    print(text, file=sys.stderr, flush=True)
