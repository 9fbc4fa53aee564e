"""`diffusers-xai experiment`: experiments over many seeds, with figures and a report."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from diffusers_xai.checkpoints import FAST
from diffusers_xai.cli.base import Commands
from diffusers_xai.cli.options import add_pipeline_options, checkpoint, count, guidance, nonempty, path


ALL, FINDINGS = "all", "findings"
FORMATS = ("png", "svg")


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "experiment",
        help="run the experiments of the thesis over many seeds",
        description="Runs experiments over many seeds and writes their numbers, figures and one report. What is"
        " measured is kept, a batch of seeds at a time: the same command continues after an interruption.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, kept=kept)
    parser.more_help = _list_of_experiments
    add = parser.add_argument
    add("name", choices=_Names(), metavar="NAME", help="one of the experiments below")
    add(
        "checkpoints", nargs="*", type=checkpoint, metavar="CHECKPOINT",
        help="of compare-checkpoints: two or more, folders or Hub ids. The first is what the others are compared with."
        " Of few-steps and few-step-findings: students of four steps, distilled from the model",
    )  # fmt: skip
    add("--out", type=path, default=Path("experiments"), metavar="DIR", help="folder to write. Default: experiments")
    add(
        "--label", type=nonempty,
        help="the label, or the first of two: bits, names or an integer. Default: 0011, or the checkpoint's first",
    )  # fmt: skip
    add(
        "--other-label", type=nonempty, metavar="LABEL",
        help="the label to compare with or to switch to. Default: 0100, or the checkpoint's second",
    )  # fmt: skip
    add("--seeds", type=count, metavar="N", help="number of seeds, from 0 on. Default: as below")
    add("--steps", type=count, metavar="N", help="denoising steps. Default: as below")
    add(
        "--guidance-scale", type=guidance, metavar="W",
        help="classifier-free guidance. Default: 1.0, none; with a prompt the pipeline's own",
    )  # fmt: skip
    add("--batch-size", type=count, default=32, metavar="N", help="images at a time. Default: 32")
    add(
        "--mask",
        type=path,
        metavar="IMAGE",
        help="region of an experiment that asks about one, or in which patching patches: the bright part of this"
        " image. Default, with lfw-32 or lfw-64: the eyes, for ablation the face, for patching the image",
    )
    add(
        "--between", choices=("labels", "seeds"),
        help="of patching: whether the source has another label (or prompt), or the same one and another seed's noise."
        " Default: labels",
    )  # fmt: skip
    add(
        "--branch", type=nonempty, metavar="NAME",
        help="of patching: the guidance branch that is patched, such as cond or uncond, or each by itself and all"
        " together. Default: all together",
    )  # fmt: skip
    add(
        "--judge", type=nonempty, metavar="FILE:FUNCTION",
        help="a function of your own that sees the attributes in images, for experiments that take one; see"
        " docs/experiments.md",
    )  # fmt: skip
    add(
        "--measure", type=nonempty, metavar="FILE:FUNCTION",
        help="of shapley: a function of your own from images to a dict of numbers by name; see docs/experiments.md",
    )  # fmt: skip
    add(
        "--concepts", type=nonempty, metavar="FILE:FUNCTION",
        help="of concepts, and of words if you like: a function of your own that tells where the parts of images, or"
        " what words stand for, are; see docs/experiments.md",
    )  # fmt: skip
    add(
        "--prompt", type=nonempty, metavar="TEXT",
        help="of words, and of patching and concepts in place of --label: the prompt",
    )  # fmt: skip
    add(
        "--other-prompt", type=nonempty, metavar="TEXT",
        help="of patching with --prompt, in place of --other-label: the prompt to compare with",
    )  # fmt: skip
    add(
        "--words", type=nonempty, nargs="+", metavar="WORD",
        help="of words: words or phrases of the prompt. Default: those that may stand for something",
    )  # fmt: skip
    add("--format", nargs="+", choices=FORMATS, default=[], help="write the figures as pictures too (needs kaleido)")
    add("--null", choices=_Nulls(), metavar="NAME", help="the control. Default: the first that the experiment knows")
    add_pipeline_options(parser, None, f"{FAST}, since thousands of images are sampled; with --prompt drawn-text-32")


def run(args: argparse.Namespace) -> None:
    """Runs what is not finished yet, and writes the report.

    Raises:
        CommandError, ValueError, KeyError, OSError: for a request that cannot be met.
    """
    from diffusers_xai.cli.experiment_run import run_experiments
    from diffusers_xai.cli.pipelines import quiet_libraries

    with quiet_libraries(unless=args.debug):
        run_experiments(args)


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves."""
    finished = len(list(args.out.glob("*/profile.json")))
    begun = [path for path in args.out.glob("*.parquet/part-*") if not path.parent.with_suffix("").exists()]
    if not finished and not begun:
        return "no experiment was finished"
    more = f", and {len(begun)} batches of the next one" if begun else ""
    return f"{finished} finished in {args.out} and kept{more}: the same command continues from there"


def _list_of_experiments() -> str:
    from diffusers_xai.experiments import EXPERIMENTS
    from diffusers_xai.experiments.findings import MIN_SEEDS

    names = "\n".join(
        f"  {name:18} {experiment.title} ({experiment.seeds} seeds, {experiment.steps} steps)"
        for name, experiment in EXPERIMENTS.items()
    )
    return (
        f"experiments:\n{names}\n  {ALL:18} All of them that need a checkpoint of labels alone\n"
        f"  {FINDINGS:18} The thesis's claims tested over {MIN_SEEDS} seeds"
    )


class _Names:
    """The experiments' names, which are imported when they are asked for."""

    def __iter__(self) -> Iterator[str]:
        from diffusers_xai.experiments import EXPERIMENTS

        return iter([*EXPERIMENTS, ALL, FINDINGS])


class _Nulls:
    """The controls' names, as those of the experiments."""

    def __iter__(self) -> Iterator[str]:
        from diffusers_xai.experiments.nulls import NULLS

        return iter(NULLS)
