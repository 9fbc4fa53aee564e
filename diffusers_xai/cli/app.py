"""`diffusers-xai app`: starts the interface in the browser, or uploads it as a Space."""

import argparse
import importlib.util
from pathlib import Path

from diffusers_xai.cli.base import CommandError, Commands, Console
from diffusers_xai.cli.options import checkpoint, integer, nonempty


_PACKAGE = Path(__file__).parents[1]


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "app",
        help="start the interface in the browser",
        description="Starts the Gradio interface on this machine, or uploads it with the package as a Space.",
    )
    parser.set_defaults(run=run, kept=kept)
    add = parser.add_argument
    add("--port", type=integer(1, 65535), metavar="N", help="port of 127.0.0.1. Default: a free one from 7860 on")
    add("--share", action="store_true", help="also give a public link for a few days, through Gradio's servers")
    add(
        "--checkpoint", type=checkpoint, action="append", default=[], metavar="DIR|HUB_ID",
        help="pipeline that visitors can choose beside the embedded one; may be given several times",
    )  # fmt: skip
    add(
        "--push",
        type=nonempty,
        metavar="REPO",
        help="do not start it, but upload it to the Space user/name; made if need be",
    )
    add("--private", action="store_true", default=None, help="make a new Space private")


def run(args: argparse.Namespace) -> None:
    """Starts or uploads.

    Raises:
        CommandError, OSError: for a request that cannot be met.
    """
    if args.private and args.push is None:
        raise CommandError("--private: expected --push beside it, for it is about the Space")
    if args.push is not None:
        for option, value in (("--checkpoint", args.checkpoint), ("--port", args.port), ("--share", args.share)):
            if value:
                raise CommandError(
                    f"{option}: expected none, as a Space shows the embedded models on its own server, got {value}"
                )
        url = push_space(space_folder(), args.push, args.private, args.console)
        args.console.result(url, {"repo": args.push, "url": url})
        return
    if importlib.util.find_spec("gradio") is None:
        raise CommandError("Gradio is not installed, which makes the interface: pip install 'diffusers-xai[app]'")
    _check_port(args.port)
    from diffusers_xai.app.server import serve  # needs Gradio, which is an extra
    from diffusers_xai.cli.pipelines import pipeline_of_prompts, quiet_libraries

    for name in args.checkpoint:
        if pipeline_of_prompts(argparse.Namespace(checkpoint=name, revision=None)) is not None:
            raise CommandError(
                f"--checkpoint: expected one of labels, or drawn-text-32, got {name}, which takes prompts: ask"
                " with `diffusers-xai profile --prompt` or `diffusers-xai experiment words`"
            )

    def told(url: str, public_url: str | None) -> None:
        public = f", and for a few days at {public_url}" if public_url else ""
        args.console.result(f"Open {url}{public}. Ctrl-C ends it.", {"url": url, "public_url": public_url})

    with quiet_libraries(unless=args.debug):
        serve(args.checkpoint, args.port, args.share, told)


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves."""
    return "nothing was written" if args.push is None else f"{args.push} has the whole upload or, most likely, nothing"


def _check_port(port: int | None) -> None:
    """Raises if another program listens on the port."""
    if port is not None:
        import socket

        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise CommandError(f"--port {port} cannot be used: {error.strerror}") from error


def space_folder() -> Path:
    """The card, the requirements and the start of a Space: inside an installed package, or beside it in a clone.

    Raises:
        CommandError: if there is none.
    """
    for folder in (_PACKAGE / "spaces", _PACKAGE.parent / "spaces"):
        if (folder / "app.py").is_file():
            return folder
    raise CommandError(f"the Space's files are missing: expected {_PACKAGE / 'spaces'}")


def push_space(folder: Path, repo_id: str, private: bool | None, console: Console) -> str:
    """Uploads the app with the package beside `app.py`, in one commit: a Space's build installs requirements alone.

    Returns:
        `str`: The URL of the commit.

    Raises:
        OSError, ValueError: see [`push_folder`]; the Hub is then unchanged.
    """
    import shutil
    import tempfile

    from diffusers_xai.hub.transfer import check_push, push_folder

    check_push(repo_id)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "spaces", ".*")
    with tempfile.TemporaryDirectory() as scratch:
        space = Path(scratch) / "space"
        shutil.copytree(folder, space, ignore=ignored)
        shutil.copytree(_PACKAGE, space / "diffusers_xai", ignore=ignored)
        console.say(f"Uploading the app to the Space {repo_id}")
        commit = push_folder(
            space, repo_id, repo_type="space", message="Upload the app", private=private,
            replaced=["diffusers_xai/*"],
        )  # fmt: skip
    return commit.commit_url
