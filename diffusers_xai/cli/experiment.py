"""`diffusers-xai experiment`: experiments over many seeds, with figures and a report."""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.cli.base import PROGRAM, CommandError, say
from diffusers_xai.cli.options import EYES, FACE, add_pipeline_options, count
from diffusers_xai.cli.pipelines import check_device, load_pipeline, num_threads, read_scheduler
from diffusers_xai.cli.requests import parse_label, region
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.base import ALL_LABELS
from diffusers_xai.experiments.findings import MIN_SEEDS, NEEDED, findings
from diffusers_xai.experiments.findings_page import to_markdown
from diffusers_xai.experiments.page import write_experiments
from diffusers_xai.experiments.sampling import process_state
from diffusers_xai.hub.cards import read_facts
from diffusers_xai.pipelines import XAIPipeline


ALL, FINDINGS = "all", "findings"
MIN_IMAGES = 50  # of a label that counts as trained
_REGIONS = {"eyes": EYES, "face": FACE}
FORMATS = ("png", "svg")


def add_command(commands: Any) -> None:
    """Adds the subcommand to the parser's `commands`."""
    names = "\n".join(
        f"  {name:18} {experiment.title} ({experiment.seeds} seeds, {experiment.steps} steps)"
        for name, experiment in EXPERIMENTS.items()
    )
    parser = commands.add_parser(
        "experiment",
        help="run the experiments of the thesis over many seeds",
        description="Runs experiments over many seeds and writes their numbers, figures and one report. What is"
        f" finished is kept: the same command goes on where it was stopped.\n\nexperiments:\n{names}\n"
        f"  {ALL:18} All of them\n  {FINDINGS:18} The thesis's claims tested over {MIN_SEEDS} seeds",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("name", choices=[*EXPERIMENTS, ALL, FINDINGS], metavar="NAME", help="one of those above")
    add("--out", type=Path, default=Path("experiments"), metavar="DIR", help="folder to write. Default: experiments")
    add("--label", help="the label, or the first of two: bits, names or an integer. Default: 0011")
    add("--other-label", metavar="LABEL", help="the label to compare with or to switch to. Default: 0100")
    add("--seeds", type=count, metavar="N", help="number of seeds, from 0 on. Default: as above")
    add("--steps", type=count, metavar="N", help="denoising steps. Default: as above")
    add("--guidance-scale", type=float, default=1.0, metavar="W", help="classifier-free guidance. Default: 1.0, none")
    add("--batch-size", type=count, default=32, metavar="N", help="images at a time. Default: 32")
    add(
        "--mask",
        type=Path,
        metavar="IMAGE",
        help="region that localisation, artifact and ablation ask about: the bright part of this image. Default, with"
        " the model inside the package: the eyes, for ablation the face",
    )
    add("--format", nargs="+", choices=FORMATS, default=[], help="write the figures as pictures too (needs kaleido)")
    add_pipeline_options(parser)


def run(args: argparse.Namespace) -> None:
    """Runs what is not finished yet, and writes the report.

    Raises:
        CommandError, ValueError, KeyError, OSError: for a request that cannot be met.
    """
    if args.format and find_spec("kaleido") is None:
        raise CommandError("--format needs kaleido and a Chrome: pip install 'diffusers-xai[figures]'")
    if args.out.exists() and not args.out.is_dir():
        raise CommandError(f"{args.out} is no folder")
    check_device(args.device)
    pipe = load_pipeline(args, read_scheduler(args))
    pipe.set_progress_bar_config(disable=True)
    labels = _labels(args, pipe)
    chosen = {ALL: list(EXPERIMENTS), FINDINGS: list(NEEDED)}.get(args.name, [args.name])
    fitting = [name for name in chosen if labels or EXPERIMENTS[name].labels == 1]
    if not fitting:
        raise CommandError(f"{args.name} compares labels: this checkpoint takes none")
    main = process_state().is_main_process
    with num_threads(args):
        results = [_finished_or_new(name, args, pipe, labels) for name in fitting]
    if not main:
        return
    pictures = {result.name: _write_figures(result, args) for result in results}
    if args.name == FINDINGS:
        by_name = {result.name: result for result in results}
        text = to_markdown(findings(by_name), by_name, pictures)
        (args.out / "findings.md").write_text(text, encoding="utf-8")
        print(args.out / "findings.md")
    command = shlex.join([PROGRAM, *sys.argv[1:]])
    write_experiments(results, args.out / "report.html", command)
    print(args.out / "report.html")


def _write_figures(result: ExperimentResult, args: argparse.Namespace) -> list[str]:
    """Writes the figures in every format that was asked for; returns the files' names in the first format."""
    if not args.format:
        return []
    figures = {result.name: result.plot(), f"{result.name}-images": result.plot_images()}
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    for ending in args.format:
        for name, figure in figures.items():
            figure.write_image(args.out / f"{name}.{ending}", width=1000, scale=1.5)
    return [f"{name}.{args.format[0]}" for name in figures]


def _finished_or_new(name: str, args: argparse.Namespace, pipe: XAIPipeline, labels: list[int]) -> ExperimentResult:
    """The result in the folder if it was made with the same settings; a new one, which is kept there, otherwise."""
    experiment = EXPERIMENTS[name]
    labels = _trained_labels(args, pipe) if experiment.labels == ALL_LABELS else labels[: experiment.labels]
    count = args.seeds or (max(MIN_SEEDS, experiment.seeds) if args.name == FINDINGS else experiment.seeds)
    sampling = Sampling(labels, range(count), args.steps or experiment.steps, args.guidance_scale, args.batch_size)
    options: dict[str, Any] = {}
    if experiment.region is not None:
        options["mask"] = _mask(args, pipe, experiment.region)
    request = {
        **asdict(sampling),
        **{key: None if value is None else value.tolist() for key, value in options.items()},
        "checkpoint": _identity(args),
        "scheduler": type(pipe.scheduler).__name__,
        "version": version("diffusers-xai"),
    }
    folder = args.out / name
    if (folder / "profile.json").is_file():
        result = ExperimentResult.load(folder)
        if result.settings.get("request") == json.loads(json.dumps(request)):
            say(f"{name}: finished before, kept")
            return result
    result = experiment.run(pipe, sampling, **options)
    result = ExperimentResult(result.name, result.data, {**result.settings, "request": request})
    if process_state().is_main_process:
        result.save(folder, overwrite=True)
    return result


def _labels(args: argparse.Namespace, pipe: XAIPipeline) -> list[int]:
    config = pipe.unet.config
    if config.get("num_class_embeds") is None:
        if args.label or args.other_label:
            raise CommandError("--label: this checkpoint takes no labels")
        return []
    first = parse_label(args.label or "0011", config)
    second = parse_label(args.other_label or "0100", config, "--other-label")
    if first == second:
        raise CommandError("--other-label: expected another label than --label")
    return [first, second]


def _trained_labels(args: argparse.Namespace, pipe: XAIPipeline) -> list[int]:
    """The labels with enough training images, where the checkpoint's `card.json` tells; all of them otherwise."""
    folder = Path(args.checkpoint or demo_checkpoint())
    counts = read_facts(folder).get("label_counts") if folder.is_dir() else None
    if counts is None:
        return list(range(pipe.unet.config["num_class_embeds"]))
    return [int(bits, 2) for bits, _, count in counts if count >= MIN_IMAGES]


def _mask(args: argparse.Namespace, pipe: XAIPipeline, name: str) -> Any:
    """The region that was asked for, or that of the faces of the model inside the package."""
    size = pipe.sample_shape[-2:]
    if args.mask is not None:
        return region(args.mask, None, size)
    return region(None, _REGIONS[name], size) if args.checkpoint is None else None


def _identity(args: argparse.Namespace) -> list[Any]:
    """What tells one checkpoint's results from another's: where it is, and when its weights were written."""
    checkpoint = args.checkpoint or demo_checkpoint()
    weights = sorted(Path(checkpoint).glob("unet/*.safetensors")) if Path(checkpoint).is_dir() else []
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in weights]
    return [Path(checkpoint).name if weights else checkpoint, args.revision, stamps]
