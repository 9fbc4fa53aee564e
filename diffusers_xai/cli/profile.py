"""`diffusers-xai profile`: samples one image and writes its diffusion profile with a report."""

import argparse

from diffusers_xai.cli.base import Commands
from diffusers_xai.cli.options import (
    DTYPES,
    MAX_SIDE,
    ablation,
    add_pipeline_options,
    count,
    guidance,
    integer,
    nonempty,
    path,
    seed,
    switch,
)
from diffusers_xai.cli.profile_request import ProfileRequest


def add_command(commands: Commands) -> None:
    """Adds the subcommand to the parser's `commands`."""
    parser = commands.add_parser(
        "profile",
        help="sample one image and write its diffusion profile with a report",
        description="Samples one image, records how it was formed, and writes the profile with report.html inside.",
    )
    parser.set_defaults(run=run, kept=kept)
    default = ProfileRequest()
    add = parser.add_argument
    add(
        "--label",
        type=nonempty,
        help="what to generate: a digit 0 or 1 for each attribute (0011), names of those that hold"
        " (Smiling,Wearing_Lipstick), or an integer (3). Default: 0011 for the attributes of the models inside the"
        " package, else the first label",
    )
    add(
        "--prompt", type=nonempty, metavar="TEXT",
        help="what to generate, for a --checkpoint whose pipeline takes prompts, such as Stable Diffusion or Flux",
    )  # fmt: skip
    add("--negative-prompt", type=nonempty, metavar="TEXT", help="what guidance leads away from; with --prompt")
    for side in ("height", "width"):
        help = f"{side} of the image; with --prompt. Default: the pipeline's own"
        add(f"--{side}", type=integer(1, MAX_SIDE), metavar="PIXELS", help=help)
    add(
        "--words", nargs="+", type=nonempty, default=default.words, metavar="WORD",
        help="words of the prompt to make maps of. Default: all but articles and the like, at most twelve",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, help="precision of the pipeline; with --prompt. Default: float32")
    add("--seed", type=seed, default=default.seed, metavar="INT", help=f"seed of the noise. Default: {default.seed}")
    add("--out", type=path, default=default.out, metavar="DIR", help=f"folder to write. Default: {default.out}")
    add("--overwrite", action="store_true", help="replace the profile that is at --out, once the new one is complete")
    add(
        "--steps", type=count, metavar="N",
        help="number of denoising steps. Default: for DDPM as many as in training (1000), else 50; with --prompt the"
        " pipeline's own",
    )  # fmt: skip
    add(
        "--guidance-scale", type=guidance, default=default.guidance_scale, metavar="W",
        help="classifier-free guidance. Default: 1.0, none; with --prompt the pipeline's own",
    )  # fmt: skip
    add(
        "--layers",
        nargs="+",
        type=nonempty,
        default=default.layers,
        metavar="GLOB",
        help="layers to record, as module paths or article-style names (downs.*.2.fn). Default: all attention layers"
        " and, where they have such names, the outputs of the blocks; with --prompt none",
    )
    add(
        "--every",
        type=count,
        metavar="N",
        help="record every N-th step. Default: so that about 100 steps are kept and the profile stays near 60 MB",
    )
    area = parser.add_mutually_exclusive_group()
    area.add_argument(
        "--mask",
        type=path,
        metavar="IMAGE",
        help="region of interest: the bright part of this image, which is of the image's size. Gradients are those of"
        " its pixels, max channels are chosen within it. With --prompt, gradients are recorded of a region alone",
    )
    area.add_argument(
        "--box",
        type=integer(0, MAX_SIDE),
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="region of interest: a rectangle in pixels, right and bottom excluded. Default: the eyes with"
        " lfw-64 or lfw-32, else the whole image",
    )
    add(
        "--no-gradients", dest="gradients", action="store_false",
        help="leave out gradients, and the default region with them",
    )  # fmt: skip
    add(
        "--ablate",
        type=ablation,
        action="append",
        default=[],
        metavar="LAYER:CHANNEL[,CHANNEL…]",
        help="sample again with these channels of the layer's output set to zero, and compare; max is the layer's max"
        " channel in the region at t = 200. Repeatable",
    )
    add(
        "--switch",
        type=switch,
        action="append",
        default=[],
        metavar="STEP:LABEL|PROMPT",
        help="sample again with another label, or with --prompt another prompt, from this step on, counted from 0, and"
        " compare. Repeatable, and together with --ablate",
    )
    add_pipeline_options(parser, default.checkpoint, "lfw-64")


def run(args: argparse.Namespace) -> None:
    """Samples, writes the profile and its report.

    Raises:
        CommandError, ValueError, KeyError, OSError: for a request that cannot be met.
    """
    request = ProfileRequest.from_args(args)
    from diffusers_xai.cli.pipelines import quiet_libraries
    from diffusers_xai.cli.profile_run import make_profile
    from diffusers_xai.profile.repr import format_size

    with quiet_libraries(unless=args.debug):
        facts = make_profile(request, args.console)
    text = f"Profile: {facts['profile']} ({format_size(facts['bytes'])})\nReport:  {facts['report']}"
    args.console.result(text, facts)


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves."""
    return f"{args.out} is as it was" if args.overwrite and args.out.exists() else "nothing was written"
