"""`diffusers-xai completion`: what makes a shell complete commands, options and their values."""

import argparse

from diffusers_xai.cli.base import Commands


SHELLS = ("bash", "zsh")


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "completion",
        help="print the completion of a shell",
        description="Prints a script that completes commands, options and their values. For bash:"
        " diffusers-xai completion bash > ~/.local/share/bash-completion/completions/diffusers-xai",
    )
    parser.set_defaults(run=run)
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace) -> None:
    """Prints the script."""
    import shtab

    from diffusers_xai.cli.parser import make_parser  # which has this command in it

    script = shtab.complete(make_parser(), args.shell)
    args.console.result(script.rstrip("\n"), {"shell": args.shell, "script": script})
