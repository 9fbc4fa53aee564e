"""`diffusers-xai audit`: grades explanations of a checkpoint against known truth and controls."""

import argparse
from pathlib import Path

from diffusers_xai.checkpoints import FAST, demo_checkpoint, part_of_face
from diffusers_xai.cli.base import CommandError, Commands
from diffusers_xai.cli.experiment import FORMATS
from diffusers_xai.cli.options import add_pipeline_options, checkpoint, count, integer, nonempty, path, spoken


_MIN_SEEDS = 3
_RESULT_BYTES = 5e6  # of the scores and figures, about


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "audit",
        help="grade explanations of a checkpoint against known truth and controls",
        description="Puts the package's explanations, and functions of your own, to tests that an explanation of the"
        " model should pass and an edge detector must fail. Writes audit.html, audit.md, audit.json and"
        " audit.parquet. What is finished is kept: the same command continues after an interruption. Ends with an"
        " error if the controls do not hold.",
    )
    parser.set_defaults(run=run, kept=kept)
    add = parser.add_argument
    add("--out", type=path, default=Path("audit"), metavar="DIR", help="folder to write. Default: audit")
    add(
        "--label", type=nonempty,
        help="the label of all samples: bits, names or an integer. Default: 0011, or the checkpoint's first",
    )  # fmt: skip
    add(
        "--other-label", type=nonempty, metavar="LABEL",
        help="the label that label sensitivity is about. Default: 0100, or the checkpoint's second",
    )  # fmt: skip
    add(
        "--mask", type=path, metavar="IMAGE",
        help="region of the image that is asked about: the bright part of this image. Default: the eyes with"
        " lfw-32 or lfw-64, else the middle",
    )  # fmt: skip
    add("--seeds", type=integer(_MIN_SEEDS, 1000), default=6, metavar="N", help="number of seeds. Default: 6")
    add("--steps", type=count, default=50, metavar="N", help="denoising steps. Default: 50")
    add(
        "--timesteps", type=integer(1, 1_000_000), nargs="+", default=[600, 200], metavar="T",
        help="moments of the process that are asked about. Default: 600 200",
    )  # fmt: skip
    add(
        "--explainer", type=nonempty, action="append", default=[], metavar="FILE:FUNCTION",
        help="a function of your own to grade too, see docs/audit.md; may be given several times",
    )  # fmt: skip
    add(
        "--permuted", type=checkpoint, metavar="DIR|HUB_ID",
        help="the same network trained from the beginning on permuted labels (training/README.md). Default: a copy of"
        " the checkpoint that is trained further on them",
    )  # fmt: skip
    add("--format", nargs="+", choices=FORMATS, default=[], help="write the figure as a picture too (needs kaleido)")
    add_pipeline_options(parser, demo_checkpoint(FAST), f"{FAST}, since hundreds of images are sampled")


def run(args: argparse.Namespace) -> None:
    """Grades what is not finished yet, and writes the table and the figure.

    Raises:
        CommandError, ValueError, KeyError, OSError: for a request that cannot be met, before anything is sampled.
        CommandError: after writing, if the controls do not hold.
    """
    from diffusers_xai.audit import audit
    from diffusers_xai.audit.kept import finished
    from diffusers_xai.audit.permuting import check_same_network
    from diffusers_xai.cli.experiment_options import labels_to_compare
    from diffusers_xai.cli.experiment_run import check_formats
    from diffusers_xai.cli.output import check_disk, claimed
    from diffusers_xai.cli.pipelines import (
        check_device,
        check_steps,
        load_pipeline,
        num_threads,
        quiet_libraries,
        read_network_config,
        read_scheduler,
    )
    from diffusers_xai.cli.profile_request import check_revision
    from diffusers_xai.cli.requests import named_function, region, sample_size

    check_revision(args.checkpoint, args.revision)
    if args.mask is not None:
        region(args.mask)  # before anything is downloaded
    check_device(args.device)
    check_formats(args.format)
    if len(set(args.timesteps)) < len(args.timesteps):
        raise CommandError(f"--timesteps {' '.join(map(str, args.timesteps))}: expected each of them once")
    explainers = [named_function(text, "--explainer") for text in args.explainer]
    finished(args.out)
    with claimed(args.out, inside=True), quiet_libraries(unless=args.debug):
        config, scheduler = read_network_config(args), read_scheduler(args)
        other = argparse.Namespace(**{**vars(args), "checkpoint": args.permuted, "revision": None})
        if args.permuted is not None:
            check_same_network(config, read_network_config(other))
        check_steps(args.steps, scheduler)
        labels = labels_to_compare(args, config)
        size = sample_size(config)
        mask = region(args.mask, part_of_face("eyes", args.checkpoint, size), size)
        asked = {"label": labels[0], "other_label": labels[1]} if labels else {"label": None, "other_label": None}
        known = {**asked, "seeds": list(range(args.seeds)), "steps": args.steps}
        finished(args.out, known)  # the rest is known once the network is loaded
        check_disk(args.out / "scores.json", _RESULT_BYTES, "audit")
        args.console.say(f"Loading {spoken(args.checkpoint)}")
        pipe = load_pipeline(args, scheduler)
        pipe.set_progress_bar_config(disable=True)
        permuted = None if args.permuted is None else load_pipeline(other, read_scheduler(other))
        with num_threads(args):
            result = audit(
                pipe,
                explainers,
                **asked,
                mask=mask,
                seeds=range(args.seeds),
                timesteps=args.timesteps,
                steps=args.steps,
                permuted=permuted,
                out=args.out,
                bar=args.console.bar_options("explanations"),
            )
        written = result.save(args.out)
        for ending in args.format:
            written.append(args.out / f"audit.{ending}")
            result.plot().write_image(written[-1], width=1300, scale=1.5)
    facts = {file.suffix[1:]: str(file) for file in written}
    args.console.result("\n".join(facts.values()), {**facts, "broken_controls": result.broken_controls})
    if result.broken_controls:
        raise CommandError(f"the grades cannot be trusted: {'; '.join(result.broken_controls)}")
    args.console.say("Both controls hold: the edge detector fails, the exact gradient passes on its closed form")


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves."""
    if not (args.out / "scores.json").is_file():
        return "nothing was written"
    return f"what is finished is kept in {args.out}: the same command continues from there"
