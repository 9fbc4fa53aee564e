"""`diffusers-xai push`: publishes a checkpoint on the Hub."""

import argparse
from pathlib import Path
from typing import Any

from diffusers_xai.cli.base import CommandError, say
from diffusers_xai.hub.cards import read_facts
from diffusers_xai.hub.transfer import check_push
from diffusers_xai.pipelines import XAIPipeline


def add_command(commands: Any) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "push",
        help="publish a checkpoint on the Hugging Face Hub",
        description="Uploads a pipeline's folder with a model card, a picture of samples, and the code with which"
        " plain diffusers opens it, in one commit. The card's facts are those of card.json in the folder.",
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("repo", metavar="REPO", help="user/name on the Hub; made if need be")
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder of the pipeline, as training exports it")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--revision", metavar="BRANCH", help="branch to commit to; made if need be. Default: main")
    add("--message", default="Upload the pipeline", help="of the commit")
    add("--sample-grid", type=Path, metavar="IMAGE", help="picture for the card. Default: samples are drawn anew")
    add("--no-sample-grid", action="store_true", help="no picture in the card")
    add("--debug", action="store_true", help="show tracebacks and the warnings of libraries")


def run(args: argparse.Namespace) -> None:
    """Checks, renders and uploads.

    Raises:
        CommandError, ValueError, OSError: for a request that cannot be met; the Hub is then unchanged.
    """
    if not (args.checkpoint / "model_index.json").is_file():
        raise CommandError(f"no checkpoint at {args.checkpoint}: expected a folder with model_index.json")
    read_facts(args.checkpoint)
    check_push(args.repo)  # before samples are drawn
    pipe = XAIPipeline.from_pretrained(str(args.checkpoint))
    pipe.set_progress_bar_config(leave=False)
    say(f"Uploading {args.checkpoint} to {args.repo}")
    commit = pipe.push_to_hub(
        args.repo,
        sample_grid=args.sample_grid or not args.no_sample_grid,
        commit_message=args.message,
        private=args.private,
        revision=args.revision,
    )
    print(commit.commit_url)
