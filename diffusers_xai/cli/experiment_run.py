"""How `diffusers-xai experiment` does what it is asked for: check, keep what is finished, run the rest, report."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from diffusers import DiffusionPipeline

from diffusers_xai.checkpoints import FAST, demo_checkpoint
from diffusers_xai.cli.base import PROGRAM, CommandError, Console
from diffusers_xai.cli.experiment import FINDINGS
from diffusers_xai.cli.experiment_job import Job, identity, jobs_of
from diffusers_xai.cli.experiment_options import labels_to_compare, takes_prompt, user_functions
from diffusers_xai.cli.options import spoken
from diffusers_xai.cli.output import check_disk, claimed
from diffusers_xai.cli.pipelines import (
    check_device,
    load_pipeline,
    load_prompt_pipeline,
    num_threads,
    read_network_config,
    read_scheduler,
)
from diffusers_xai.cli.profile_request import check_revision
from diffusers_xai.cli.requests import region
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, moments_over_seeds
from diffusers_xai.experiments.findings import findings
from diffusers_xai.experiments.findings_page import to_markdown
from diffusers_xai.experiments.nulls import gaussian_null
from diffusers_xai.experiments.page import write_experiments
from diffusers_xai.experiments.processes import process_state
from diffusers_xai.experiments.sampling import show_progress
from diffusers_xai.models import GaussianDenoiser, MixtureDenoiser
from diffusers_xai.passed import Scheduler
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.plots.tiles import fit_width
from diffusers_xai.profile.atomic import replacing


_RESULT_BYTES = 3e6  # of an experiment's folder and figures, about
_WIDTH = 1000  # of a picture of a figure, in CSS pixels


def run_experiments(args: argparse.Namespace) -> None:
    """Runs what is not finished yet, and writes the report.

    Raises:
        CommandError, ValueError, KeyError, OSError: for a request that cannot be met, before anything is sampled.
    """
    state = process_state()
    main = state.is_main_process
    console = args.console if main else Console(quiet=True)
    args, *others = _choices(args)
    check_revision(args.checkpoint, args.revision)
    if args.mask is not None:
        region(args.mask)  # before anything is downloaded
    functions = user_functions(args)
    check_device(args.device)
    check_formats(args.format)
    _check_out(args.out)
    with claimed(args.out, inside=True) if main else nullcontext():
        config = {} if takes_prompt(args) else read_network_config(args)
        scheduler = read_scheduler(args)
        jobs = jobs_of(args, config, scheduler, [identity(other) for other in others])
        state.wait_for_everyone()  # before anything is written that another process looks for
        schedulers = [read_scheduler(other) for other in others]
        left = [job for job in jobs if job.finished is None]
        check_disk(args.out / "report.html", _RESULT_BYTES * len(left), "experiments")
        pipe = _load(args, scheduler, console) if left else None
        pipes = [_load(*choice, console) for choice in zip(others, schedulers, strict=True)] if left else []
        results: list[ExperimentResult] = []
        for number, job in enumerate(jobs, 1):
            at = f"[{number}/{len(jobs)}] {job.name}"
            if job.finished is not None:
                console.say(f"{at}: finished before, kept")
                results.append(job.finished)
            elif pipe is not None:
                console.say(f"{at}: {len(job.sampling.seeds)} seeds, {job.sampling.steps} steps")
                with num_threads(args), _bars([pipe, *pipes], console):
                    plan = EXPERIMENTS[job.name].plan
                    if plan is not None:
                        console.say(f"{at}: {plan(pipe, job.sampling, **job.options)}")
                    gaussian = partial(_gaussian, args, config, pipe, console)
                    results.append(job.run(pipe, pipes, functions, gaussian))
                if main:
                    _save(results[-1], job, args.out)
        if main:
            _write(args, results, console)


def _save(result: ExperimentResult, job: Job, out: Path) -> None:
    """Writes the moments over the seeds, and then the result, which tells that the experiment is finished."""
    with replacing(out / f"{job.name}-moments.parquet") as path:
        moments_over_seeds(job.parts).to_parquet(path, index=False)
    result.save(out / job.name)


def _choices(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options once for each checkpoint, the one that is explained first.

    Raises:
        CommandError: If there are fewer or more checkpoints than the experiment takes.
    """
    default = demo_checkpoint("drawn-text-32" if takes_prompt(args) else FAST)
    chosen = _with_checkpoint(args, args.checkpoint or default)
    if args.name in EXPERIMENTS and EXPERIMENTS[args.name].may_take == "students":
        return [chosen, *(_with_checkpoint(args, name, revision=None) for name in args.checkpoints)]
    if args.name not in EXPERIMENTS or EXPERIMENTS[args.name].needs != "checkpoints":
        if args.checkpoints:
            raise CommandError(
                f"{args.name}: expected one checkpoint, by --checkpoint, got {', '.join(args.checkpoints)}"
            )
        return [chosen]
    if args.checkpoint is not None or args.revision is not None:
        given = args.checkpoint if args.checkpoint is not None else args.revision
        raise CommandError(f"{args.name}: expected checkpoints without --checkpoint and --revision, got {given}")
    if len(args.checkpoints) < 2:
        raise CommandError(f"{args.name}: expected two or more checkpoints after it, got {len(args.checkpoints)}")
    return [_with_checkpoint(args, name) for name in args.checkpoints]


def _with_checkpoint(args: argparse.Namespace, checkpoint: str, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "checkpoint": checkpoint, **changes})


def _gaussian(args: argparse.Namespace, config: dict[str, Any], pipe: XAIPipeline, console: Console) -> XAIPipeline:
    """The Gaussians fitted to the model's samples of both labels, kept in the folder for all experiments."""
    folder, labels = args.out / ".gaussian-null", labels_to_compare(args, config)
    made = {"labels": labels, "checkpoint": identity(args)}
    facts = folder / "fitted.json"
    with process_state().main_process_first():
        if not facts.is_file() or json.loads(facts.read_text(encoding="utf-8")) != made:
            console.say("fits Gaussians to samples of the model, the control")
            gaussian_null(pipe, labels, batch_size=args.batch_size).save_pretrained(folder)
            facts.write_text(json.dumps(made), encoding="utf-8")
    model = (MixtureDenoiser if labels else GaussianDenoiser).from_pretrained(folder / "unet")
    null = XAIPipeline(model.to(pipe.device), pipe.scheduler)
    null.set_progress_bar_config(disable=True)
    return null


def _load(args: argparse.Namespace, scheduler: Scheduler, console: Console) -> DiffusionPipeline:
    console.say(f"Loading {spoken(args.checkpoint)}")
    return (load_prompt_pipeline if takes_prompt(args) else load_pipeline)(args, scheduler)


@contextmanager
def _bars(pipes: list[XAIPipeline], console: Console) -> Iterator[None]:
    """The seeds that are done, and the steps of a batch where it takes long."""
    for pipe in pipes:
        pipe.set_progress_bar_config(**{"leave": False, "delay": 2.0, **console.bar_options("  steps")})
    with show_progress(console.bar_options("  seeds")):
        yield


def check_formats(formats: list[str]) -> None:
    """Raises if figures cannot be written as pictures."""
    if not formats:
        return
    if len(set(formats)) < len(formats):
        raise CommandError(f"--format: expected each format once, got {' '.join(formats)}")
    if find_spec("kaleido") is None:
        raise CommandError(
            "--format: kaleido is not installed, which draws with a Chrome: pip install 'diffusers-xai[figures]'"
        )
    try:
        go.Figure().to_image(format=formats[0])
    except Exception as error:  # kaleido's and the browser's, of many types
        raise CommandError(f"--format: no picture can be drawn: {error}") from error


def _check_out(out: Path) -> None:
    there = sorted(path for path in out.glob("*") if not path.name.startswith("."))
    known = {*EXPERIMENTS, *(f"{name}.parquet" for name in EXPERIMENTS)}
    if there and not any(path.name in known for path in there):
        raise CommandError(
            f"--out: expected a folder of experiments or none, got {out} with {there[0].name}: choose another"
        )


def _write(args: argparse.Namespace, results: list[ExperimentResult], console: Console) -> None:
    """Writes pictures, findings and the report."""
    console.say("Writing the report")
    made = {}
    pictures = {result.name: _write_figures(result, args) for result in results}
    if args.name == FINDINGS:
        by_name = {result.name: result for result in results}
        made["findings"] = str(args.out / "findings.md")
        Path(made["findings"]).write_text(to_markdown(findings(by_name), by_name, pictures), encoding="utf-8")
    made["report"] = str(args.out / "report.html")
    write_experiments(results, Path(made["report"]), shlex.join([PROGRAM, *sys.argv[1:]]))
    folders = {result.name: str(args.out / result.name) for result in results}
    console.result("\n".join(made.values()), {**made, "experiments": folders})


def _write_figures(result: ExperimentResult, args: argparse.Namespace) -> list[str]:
    """Writes the figures in every format that was asked for; returns the files' names in the first format."""
    if not args.format:
        return []
    figures = {result.name: result.plot(), f"{result.name}-images": result.plot_images()}
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    for ending in args.format:
        for name, figure in figures.items():
            fit_width(figure, _WIDTH).write_image(args.out / f"{name}.{ending}", width=_WIDTH, scale=1.5)
    return [f"{name}.{args.format[0]}" for name in figures]
