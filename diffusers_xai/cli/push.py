"""`diffusers-xai push`: publishes a checkpoint on the Hub."""

import argparse

from diffusers_xai.cli.base import CommandError, Commands
from diffusers_xai.cli.options import nonempty, path, revision


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "push",
        help="publish a checkpoint on the Hugging Face Hub",
        description="Uploads a pipeline's folder with a model card, a picture of samples, and the code with which"
        " plain diffusers opens it, in one commit. The card's facts are those of card.json in the folder.",
    )
    parser.set_defaults(run=run, kept=kept)
    add = parser.add_argument
    add("repo", metavar="REPO", type=nonempty, help="user/name on the Hub; made if need be")
    add("--checkpoint", type=path, required=True, metavar="DIR", help="folder of the pipeline, as training exports it")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--revision", type=revision, metavar="BRANCH", help="branch to commit to; made if need be. Default: main")
    add("--message", type=nonempty, default="Upload the pipeline", help="of the commit")
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument("--sample-grid", type=path, metavar="IMAGE", help="picture for the card. Default: new samples")
    grid.add_argument("--no-sample-grid", action="store_true", help="no picture in the card")


def run(args: argparse.Namespace) -> None:
    """Checks, renders and uploads.

    Raises:
        CommandError, ValueError, OSError: for a request that cannot be met; the Hub is then unchanged.
    """
    from diffusers_xai.cli.pipelines import quiet_libraries
    from diffusers_xai.hub.cards import read_facts
    from diffusers_xai.hub.transfer import check_push
    from diffusers_xai.measures.pictures import open_picture
    from diffusers_xai.pipelines import XAIPipeline

    if not (args.checkpoint / "model_index.json").is_file():
        raise CommandError(f"no checkpoint at {args.checkpoint}: expected a folder with model_index.json")
    read_facts(args.checkpoint)
    if args.sample_grid is not None:
        try:
            open_picture(args.sample_grid)
        except OSError as error:
            raise CommandError(f"--sample-grid {args.sample_grid}: cannot be read as an image: {error}") from error
    check_push(args.repo)  # before samples are drawn
    with quiet_libraries(unless=args.debug):
        pipe = XAIPipeline.from_pretrained(str(args.checkpoint))
        pipe.set_progress_bar_config(**args.console.bar_options("Samples for the card"))
        args.console.say(f"Uploading {args.checkpoint} to {args.repo}")
        commit = pipe.push_to_hub(
            args.repo,
            sample_grid=args.sample_grid or not args.no_sample_grid,
            commit_message=args.message,
            private=args.private,
            revision=args.revision,
        )
    args.console.result(commit.commit_url, {"repo": args.repo, "commit": commit.oid, "url": commit.commit_url})


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves."""
    return f"{args.repo} has the whole upload or, most likely, nothing of it"
