"""The command line: `diffusers-xai profile …`, `experiment …`, `audit …`, `app`, `push …`, `completion …`.

Every command is one module that adds its parser and runs it. What is heavy to import is imported when a command runs,
so that help, completion and errors come at once; everything else inside `main`, so that Ctrl-C is answered meanwhile.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: The exit code: 0, 2 after an error, 130 after an interruption.
    """
    try:
        from diffusers_xai.cli.command import run
    except KeyboardInterrupt:
        print("diffusers-xai: interrupted, nothing was written", file=sys.stderr)
        return 130
    return run(sys.argv[1:] if argv is None else list(argv))
