"""The experiments that `diffusers-xai experiment` is asked for, and what is finished of each."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.experiment import ALL, FINDINGS
from diffusers_xai.cli.experiment_options import (
    FUNCTIONS,
    check_own,
    guidance_scale,
    labels_of,
    labels_to_compare,
    options_of,
    prompt_pipeline,
    takes_prompt,
)
from diffusers_xai.cli.pipelines import check_guidance, check_steps
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.experiments.claims import NEEDED
from diffusers_xai.experiments.findings import MIN_SEEDS
from diffusers_xai.experiments.parts import check_request, check_same
from diffusers_xai.passed import Scheduler
from diffusers_xai.pipelines import XAIPipeline


@dataclass(frozen=True)
class Job:
    """One experiment: what it runs, and what identifies its result."""

    name: str
    sampling: Sampling
    options: dict[str, Any]
    request: dict[str, Any]
    parts: Path
    finished: ExperimentResult | None

    def run(
        self,
        pipe: XAIPipeline,
        others: list[XAIPipeline],
        functions: dict[str, Callable],
        gaussian: Callable[[], XAIPipeline],
    ) -> ExperimentResult:
        """Measures.

        Args:
            pipe ([`XAIPipeline`]): The checkpoint.
            others (`list` of [`XAIPipeline`]): Those that it is compared with.
            functions (`dict`): The user's, by option.
            gaussian (`Callable`): Fits or reads the Gaussians of the two labels, which several experiments share.
        """
        options = {**self.options, **({"others": others} if others else {})}
        options |= {name: function for name, function in functions.items() if name in options}
        if options["null"] == "gaussian" and EXPERIMENTS[self.name].labels <= 2:
            options["null"] = gaussian()
        result = EXPERIMENTS[self.name].run(pipe, self.sampling, parts=self.parts, request=self.request, **options)
        return ExperimentResult(result.name, result.data, {**result.settings, "request": self.request})


def jobs_of(
    args: argparse.Namespace, config: dict[str, Any], scheduler: Scheduler, others: list[list[Any]]
) -> list[Job]:
    """The experiments that are asked for, in order.

    Args:
        args (`argparse.Namespace`): The options.
        config (`dict`): The network's, empty for a pipeline with a prompt.
        scheduler ([`~diffusers.SchedulerMixin`]): The one that samples.
        others (`list`): The identities of the checkpoints that it is compared with.

    Raises:
        CommandError, ValueError, OSError: for a request that cannot be met, or a folder that holds something else.
    """
    labels = labels_to_compare(args, config)
    if takes_prompt(args):
        prompt_pipeline(args)
    else:
        check_guidance(guidance_scale(args), config)
    if args.steps is not None:
        check_steps(args.steps, scheduler)
    if args.judge is not None and args.name in EXPERIMENTS and not EXPERIMENTS[args.name].judged:
        raise CommandError(f"--judge: expected none, as {args.name} takes no judge, got {args.judge}")
    if args.mask is not None and args.name in EXPERIMENTS and not EXPERIMENTS[args.name].takes("mask"):
        raise CommandError(f"--mask: expected none, as {args.name} takes no region, got {args.mask}")
    check_own(args)
    alone = [name for name, experiment in EXPERIMENTS.items() if experiment.needs is None]
    chosen = {ALL: alone, FINDINGS: list(NEEDED)}.get(args.name, [args.name])
    any_model = takes_prompt(args) or args.between == "seeds"
    fitting = [name for name in chosen if labels or EXPERIMENTS[name].labels == 1 or any_model]
    if not fitting:
        raise CommandError(f"{args.name}: expected a checkpoint whose labels can be compared, got one that takes none")
    return [_job(name, args, config, scheduler, labels, others) for name in fitting]


def _job(
    name: str,
    args: argparse.Namespace,
    config: dict[str, Any],
    scheduler: Scheduler,
    labels: list[int],
    others: list[list[Any]],
) -> Job:
    experiment = EXPERIMENTS[name]
    labels = labels_of(experiment, args, config, labels)
    seeds = args.seeds or (max(MIN_SEEDS, experiment.seeds) if args.name == FINDINGS else experiment.seeds)
    if seeds < experiment.min_seeds:
        raise CommandError(f"--seeds: expected at least {experiment.min_seeds} for {name}, got {seeds}")
    steps = args.steps or min(experiment.steps, scheduler.config.get("num_train_timesteps", 1000))
    sampling = Sampling(labels, range(seeds), steps, guidance_scale(args), args.batch_size)
    options = options_of(experiment, args, config)
    request = {
        **asdict(sampling),
        **{key: _requested(key, value) for key, value in options.items()},
        "checkpoint": identity(args),
        "scheduler": type(scheduler).__name__,
        **({"others": others} if others else {}),
    }
    request = json.loads(json.dumps(request))
    parts = args.out / f"{name}.parquet"
    return Job(name, sampling, options, request, parts, _finished(args.out / name, parts, request))


def _finished(folder: Path, parts: Path, request: dict[str, Any]) -> ExperimentResult | None:
    """The result, if it is there; neither it nor the seeds that are kept may be of another request."""
    try:
        if (folder / "profile.json").is_file():
            finished = ExperimentResult.load(folder)
            made = finished.settings.get("request", {})
            # What a function told is kept with the rest: it is not needed again, to read it.
            told = {name: made[name] for name in FUNCTIONS if name in made and request.get(name) is None}
            check_same(folder, made, {**request, **told})
            return finished
        if folder.exists():
            raise CommandError(
                f"--out: expected a result of {folder.name} or nothing there, got {folder}: choose another"
            )
        check_request(parts, request)
    except ValueError as error:
        raise CommandError(f"{error}: choose another --out, or remove it") from error
    return None


def _requested(option: str, value: Any) -> Any:
    """An option as it tells one request from another: functions by their file's content."""
    if option in FUNCTIONS:
        file, _, name = value.rpartition(":")
        return [f"{Path(file).name}:{name}", hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]]
    return value.tolist() if isinstance(value, np.ndarray) else value


def identity(args: argparse.Namespace) -> list[Any]:
    """What tells one checkpoint's results from another's: its name, and a digest of its weights if they lie here."""
    checkpoint = args.checkpoint
    networks = ("unet", "transformer", "transformer_2", "prior")
    found = (path for name in networks for path in sorted(Path(checkpoint, name).glob("*.safetensors")))
    weights = list(found) if Path(checkpoint).is_dir() else []
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in weights]
    return [Path(checkpoint).name if weights else checkpoint, args.revision, digests]
