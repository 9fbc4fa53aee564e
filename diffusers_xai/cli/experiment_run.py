"""How `diffusers-xai experiment` does what it is asked for: check, keep what is finished, run the rest, report."""

import argparse
import hashlib
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from diffusers import DiffusionPipeline

from diffusers_xai.checkpoints import EYES, FACE, demo_checkpoint
from diffusers_xai.cli.base import PROGRAM, CommandError, Console
from diffusers_xai.cli.experiment import ALL, FINDINGS
from diffusers_xai.cli.output import check_disk, claimed
from diffusers_xai.cli.pipelines import (
    check_device,
    check_guidance,
    check_steps,
    load_pipeline,
    load_prompt_pipeline,
    num_threads,
    pipeline_of_prompts,
    read_network_config,
    read_scheduler,
)
from diffusers_xai.cli.profile_request import check_revision
from diffusers_xai.cli.prompts import words_of
from diffusers_xai.cli.requests import default_labels, named_function, parse_label, region, sample_size
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling, moments_over_seeds
from diffusers_xai.experiments.base import ALL_LABELS, SPANNED_LABELS
from diffusers_xai.experiments.claims import NEEDED
from diffusers_xai.experiments.findings import MIN_SEEDS, findings
from diffusers_xai.experiments.findings_page import to_markdown
from diffusers_xai.experiments.nulls import gaussian_null
from diffusers_xai.experiments.page import write_experiments
from diffusers_xai.experiments.parts import check_request, check_same
from diffusers_xai.experiments.processes import process_state
from diffusers_xai.experiments.sampling import show_progress
from diffusers_xai.experiments.words import without
from diffusers_xai.hub.cards import read_facts
from diffusers_xai.labels import label_from_bits, labels_between
from diffusers_xai.models import GaussianDenoiser, MixtureDenoiser
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.profile.atomic import replacing


MIN_IMAGES = 50  # of a label that counts as trained
_REGIONS = {"eyes": EYES, "face": FACE}
_RESULT_BYTES = 3e6  # of an experiment's folder and figures, about


@dataclass(frozen=True)
class _Job:
    """One experiment: what it runs, and what identifies its result."""

    name: str
    sampling: Sampling
    options: dict[str, Any]
    request: dict[str, Any]
    parts: Path
    finished: ExperimentResult | None

    def run(
        self, pipe: XAIPipeline, others: list[XAIPipeline], gaussian: Callable[[], XAIPipeline]
    ) -> ExperimentResult:
        """Measures.

        Args:
            pipe ([`XAIPipeline`]): The checkpoint.
            others (`list` of [`XAIPipeline`]): Those that it is compared with.
            gaussian (`Callable`): Fits or reads the Gaussians of the two labels, which several experiments share.
        """
        options = {**self.options, **({"others": others} if others else {})}
        for name in ("judge", "concepts"):
            if name in options:
                options[name] = named_function(options[name], f"--{name}")
        if options["null"] == "gaussian" and EXPERIMENTS[self.name].labels <= 2:
            options["null"] = gaussian()
        result = EXPERIMENTS[self.name].run(pipe, self.sampling, parts=self.parts, request=self.request, **options)
        return ExperimentResult(result.name, result.data, {**result.settings, "request": self.request})


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
    for name in ("judge", "concepts"):
        if getattr(args, name) is not None:
            named_function(getattr(args, name), f"--{name}")
    check_device(args.device)
    check_formats(args.format)
    _check_out(args.out)
    with claimed(args.out, inside=True) if main else nullcontext():
        config = {} if _takes_prompt(args) else read_network_config(args)
        scheduler = read_scheduler(args)
        jobs = _jobs(args, config, scheduler, [_identity(other) for other in others])
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
                    results.append(job.run(pipe, pipes, lambda: _gaussian(args, config, pipe, console)))
                if main:
                    _save(results[-1], job, args.out)
        if main:
            _write(args, results, console)


def _save(result: ExperimentResult, job: _Job, out: Path) -> None:
    """Writes the moments over the seeds, and then the result, which tells that the experiment is finished."""
    with replacing(out / f"{job.name}-moments.parquet") as path:
        moments_over_seeds(job.parts).to_parquet(path, index=False)
    result.save(out / job.name)


def _choices(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options once for each checkpoint, the one that is explained first.

    Raises:
        CommandError: If there are fewer or more checkpoints than the experiment takes.
    """
    if args.name in EXPERIMENTS and EXPERIMENTS[args.name].may_take == "students":
        return [
            args,
            *(argparse.Namespace(**{**vars(args), "checkpoint": name, "revision": None}) for name in args.checkpoints),
        ]
    if args.name not in EXPERIMENTS or EXPERIMENTS[args.name].needs != "checkpoints":
        if args.checkpoints:
            raise CommandError(f"{args.name} takes one checkpoint, by --checkpoint, got {', '.join(args.checkpoints)}")
        if _takes_prompt(args) and args.checkpoint is None:
            return [argparse.Namespace(**{**vars(args), "checkpoint": demo_checkpoint("drawn-text-32")})]
        return [args]
    if args.checkpoint is not None or args.revision is not None:
        raise CommandError(f"{args.name} takes its checkpoints without --checkpoint and --revision")
    if len(args.checkpoints) < 2:
        raise CommandError(f"{args.name}: expected two or more checkpoints after it, got {len(args.checkpoints)}")
    return [argparse.Namespace(**{**vars(args), "checkpoint": name}) for name in args.checkpoints]


def _takes_prompt(args: argparse.Namespace) -> bool:
    experiment = EXPERIMENTS.get(args.name)
    if experiment is None:
        return False
    asked = args.prompt is not None or args.other_prompt is not None
    return experiment.needs == "prompt" or (experiment.may_take == "prompts" and asked)


def _prompt_pipeline(args: argparse.Namespace) -> type[DiffusionPipeline]:
    kind = pipeline_of_prompts(args)
    if kind is None:
        raise CommandError(
            f"expected a --checkpoint of diffusers whose pipeline takes a prompt, got {args.checkpoint}"
        )
    return kind


def _guidance_scale(args: argparse.Namespace) -> float:
    """The guidance that was asked for; by default none, of a pipeline with a prompt its own."""
    if args.guidance_scale is not None:
        return args.guidance_scale
    if not _takes_prompt(args):
        return 1.0
    parameter = inspect.signature(_prompt_pipeline(args).__call__).parameters.get("guidance_scale")
    return float(parameter.default) if parameter is not None and isinstance(parameter.default, (int, float)) else 1.0


def _gaussian(args: argparse.Namespace, config: dict[str, Any], pipe: XAIPipeline, console: Console) -> XAIPipeline:
    """The Gaussians fitted to the model's samples of both labels, kept in the folder for all experiments."""
    folder, labels = args.out / ".gaussian-null", labels_to_compare(args, config)
    made = {"labels": labels, "checkpoint": _identity(args)}
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


def _load(args: argparse.Namespace, scheduler: Any, console: Console) -> Any:
    console.say(f"Loading {args.checkpoint or 'the model inside the package'}")
    return (load_prompt_pipeline if _takes_prompt(args) else load_pipeline)(args, scheduler)


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
    if find_spec("kaleido") is None:
        raise CommandError("--format needs kaleido and a Chrome: pip install 'diffusers-xai[figures]'")
    try:
        go.Figure().to_image(format=formats[0])
    except Exception as error:  # kaleido's and the browser's, of many types
        raise CommandError(f"--format: no picture can be drawn: {error}") from error


def _check_out(out: Path) -> None:
    there = sorted(path for path in out.glob("*") if not path.name.startswith("."))
    known = {*EXPERIMENTS, *(f"{name}.parquet" for name in EXPERIMENTS)}
    if there and not any(path.name in known for path in there):
        raise CommandError(f"{out} holds {there[0].name} and no experiments: choose another --out")


def _jobs(args: argparse.Namespace, config: dict[str, Any], scheduler: Any, others: list[list[Any]]) -> list[_Job]:
    labels = labels_to_compare(args, config)
    if _takes_prompt(args):
        _prompt_pipeline(args)
    else:
        check_guidance(_guidance_scale(args), config)
    if args.steps is not None:
        check_steps(args.steps, scheduler)
    if args.judge is not None and args.name in EXPERIMENTS and not EXPERIMENTS[args.name].judged:
        raise CommandError(f"--judge {args.judge}: {args.name} takes no judge")
    alone = [name for name, experiment in EXPERIMENTS.items() if experiment.needs is None]
    chosen = {ALL: alone, FINDINGS: list(NEEDED)}.get(args.name, [args.name])
    fitting = [name for name in chosen if labels or EXPERIMENTS[name].labels == 1 or _takes_prompt(args)]
    if not fitting:
        raise CommandError(f"{args.name} compares labels: this checkpoint takes none")
    return [_job(name, args, config, scheduler, labels, others) for name in fitting]


def _job(
    name: str,
    args: argparse.Namespace,
    config: dict[str, Any],
    scheduler: Any,
    labels: list[int],
    others: list[list[Any]],
) -> _Job:
    experiment = EXPERIMENTS[name]
    if experiment.labels == ALL_LABELS:
        labels = _trained_labels(args, config)
    elif experiment.labels == SPANNED_LABELS:
        first, second = labels
        labels = labels_between(first, second, config.get("class_attributes") or ())
    labels = labels[: experiment.labels]
    seeds = args.seeds or (max(MIN_SEEDS, experiment.seeds) if args.name == FINDINGS else experiment.seeds)
    if seeds < experiment.min_seeds:
        raise CommandError(f"--seeds {seeds}: {name} needs at least {experiment.min_seeds}")
    steps = args.steps or min(experiment.steps, scheduler.config.get("num_train_timesteps", 1000))
    sampling = Sampling(labels, range(seeds), steps, _guidance_scale(args), args.batch_size)
    options: dict[str, Any] = {"null": args.null or experiment.nulls[0]}
    if options["null"] not in (*experiment.nulls, "none"):
        known = ", ".join((*experiment.nulls, "none"))
        raise CommandError(f"--null {args.null}: {name} knows {known}")
    if experiment.region is not None:
        box = _REGIONS.get(experiment.region) if args.checkpoint is None and args.mask is None else None
        options["mask"] = region(args.mask, box, sample_size(config))
    if experiment.judged and args.judge is not None:
        options["judge"] = args.judge
    if experiment.needs == "prompt":
        if args.prompt is None:
            raise CommandError(f"{name}: expected a --prompt")
        options |= {"prompt": args.prompt, "words": args.words or words_of(args.prompt)}
        for word in options["words"]:
            without(args.prompt, word)  # before anything is loaded
    elif args.words is not None:
        raise CommandError(f"--words: {name} takes none")
    if experiment.may_take == "prompts" and _takes_prompt(args):
        if None in (args.prompt, args.other_prompt) or args.prompt == args.other_prompt:
            raise CommandError(f"{name}: expected a --prompt and another --other-prompt")
        options["prompts"] = [args.prompt, args.other_prompt]
    elif args.other_prompt is not None or (args.prompt is not None and not _takes_prompt(args)):
        raise CommandError(f"--prompt and --other-prompt: {name} does not take them")
    if experiment.needs == "concepts" and args.concepts is None:
        raise CommandError(f"{name}: expected --concepts FILE:FUNCTION, which tells where the parts of images are")
    if "concepts" in (experiment.needs, experiment.may_take):
        options |= {"concepts": args.concepts} if args.concepts is not None else {}
    elif args.concepts is not None:
        raise CommandError(f"--concepts {args.concepts}: {name} takes no concepts")
    request = {
        **asdict(sampling),
        **{key: _requested(key, value) for key, value in options.items()},
        "checkpoint": _identity(args),
        "scheduler": type(scheduler).__name__,
        **({"others": others} if others else {}),
    }
    request = json.loads(json.dumps(request))
    folder, parts = args.out / name, args.out / f"{name}.parquet"
    finished = None
    try:
        if (folder / "profile.json").is_file():
            finished = ExperimentResult.load(folder)
            check_same(folder, finished.settings.get("request", {}), request)
        elif folder.exists():
            raise CommandError(f"{folder} is not a result of {name}: choose another --out")
        else:
            check_request(parts, request)
    except ValueError as error:
        raise CommandError(f"{error}: choose another --out, or remove it") from error
    return _Job(name, sampling, options, request, parts, finished)


def _requested(option: str, value: Any) -> Any:
    """An option as it tells one request from another: functions by their file's content."""
    if option in ("judge", "concepts"):
        file, _, name = value.rpartition(":")
        return [f"{Path(file).name}:{name}", hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]]
    return value.tolist() if isinstance(value, np.ndarray) else value


def labels_to_compare(args: argparse.Namespace, config: dict[str, Any]) -> list[int]:
    """The labels of `--label` and `--other-label`; none of a checkpoint that takes none."""
    if config.get("num_class_embeds") is None:
        for option, text in (("--label", args.label), ("--other-label", args.other_label)):
            if text is not None:
                raise CommandError(f"{option} {text}: this checkpoint takes no labels")
        return []
    defaults = default_labels(config)
    first = defaults[0] if args.label is None else parse_label(args.label, config)
    if args.other_label is not None:
        second = parse_label(args.other_label, config, "--other-label")
    else:
        second = next(label for label in reversed(defaults) if label != first)
    if first == second:
        raise CommandError("--other-label: expected another label than --label")
    return [first, second]


def _trained_labels(args: argparse.Namespace, config: dict[str, Any]) -> list[int]:
    """The labels with enough training images, where the checkpoint's `card.json` tells; all of them otherwise."""
    folder = Path(args.checkpoint or demo_checkpoint())
    counts = read_facts(folder).get("label_counts") if folder.is_dir() else None
    if counts is None:
        return list(range(config["num_class_embeds"]))
    return [label_from_bits(bits) for bits, _, count in counts if count >= MIN_IMAGES]


def _identity(args: argparse.Namespace) -> list[Any]:
    """What tells one checkpoint's results from another's: its name, and a digest of its weights if they lie here."""
    checkpoint = args.checkpoint or demo_checkpoint()
    networks = ("unet", "transformer", "transformer_2", "prior")
    found = (path for name in networks for path in sorted(Path(checkpoint, name).glob("*.safetensors")))
    weights = list(found) if Path(checkpoint).is_dir() else []
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in weights]
    return [Path(checkpoint).name if weights else checkpoint, args.revision, digests]


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
            figure.write_image(args.out / f"{name}.{ending}", width=1000, scale=1.5)
    return [f"{name}.{args.format[0]}" for name in figures]
