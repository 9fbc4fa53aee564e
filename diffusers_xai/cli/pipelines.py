"""Which pipeline the commands that sample use: its configurations before its weights, its device, its threads."""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.import_utils import DummyObject
from torch import nn

from diffusers_xai import models
from diffusers_xai.checkpoints import name_of_embedded
from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.options import SCHEDULERS
from diffusers_xai.hub.transfer import fetch_file, is_hub_id
from diffusers_xai.pipelines import XAIPipeline
from diffusers_xai.pipelines.checkpoint import open_pipeline


_Pipeline = TypeVar("_Pipeline", bound=DiffusionPipeline)


class PipelineChoice(Protocol):
    """What the options of `add_pipeline_options` say."""

    @property
    def checkpoint(self) -> str:
        """Folder or Hub id."""

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit on the Hub."""

    @property
    def scheduler(self) -> str | None:
        """A key of `SCHEDULERS`; the checkpoint's own scheduler if `None`."""

    @property
    def device(self) -> str:
        """Where to compute."""

    @property
    def threads(self) -> int | None:
        """CPU threads."""


def check_device(device: str) -> None:
    """Raises if nothing can be computed on `device`."""
    try:
        if torch.device(device).type == "cpu" and torch.device(device).index:
            raise ValueError("expected cpu or cpu:0")  # torch takes any number
        torch.zeros(1, device=device).item()
    except Exception as error:  # of many types, by backend
        why = " ".join(str(error).split()).partition(" This could be because")[0][:300]
        raise CommandError(f"--device {device} cannot be used: {why}") from error


def check_guidance(scale: float, config: Mapping[str, Any]) -> None:
    """Raises if a network of this configuration cannot be guided."""
    if scale != 1 and config.get("null_class_label") is None:
        raise CommandError(
            f"--guidance-scale: expected 1, as this checkpoint was trained without a null label, got {scale:g}"
        )


def check_steps(steps: int, scheduler: SchedulerMixin) -> None:
    """Raises if the scheduler has not as many steps."""
    most = scheduler.config.get("num_train_timesteps", 1000)
    if steps > most:
        raise CommandError(f"--steps {steps}: expected at most the {most} timesteps of the training")


def check_every(every: int | None, steps: int) -> None:
    """Raises if a stride is longer than the run."""
    if every is not None and every > steps:
        raise CommandError(f"--every {every}: expected at most the {steps} steps of the run")


def read_network_config(choice: PipelineChoice) -> dict[str, Any]:
    """The configuration of a network of labels, or without a condition, without its weights.

    Raises:
        CommandError, ValueError, OSError: if there is no such checkpoint, or its network needs something else.
    """
    config = read_json(choice, "unet/config.json")
    kind = str(config.get("_class_name"))
    network = getattr(models, kind, None) or getattr(diffusers, kind, None)
    if not (inspect.isclass(network) and issubclass(network, nn.Module)):
        return config
    arguments = inspect.signature(network.forward).parameters.values()
    named = [p for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed := [p.name for p in named[3:] if p.default is p.empty]:  # behind self, sample and timestep
        raise CommandError(f"expected a network that needs a label at most, got {kind}, which needs {needed[0]}")
    parameters = inspect.signature(network.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | config


def read_scheduler(choice: PipelineChoice) -> SchedulerMixin:
    """The scheduler that was chosen, or the checkpoint's own, with the checkpoint's settings.

    Raises:
        CommandError, ValueError, OSError: if there is no such checkpoint.
    """
    config = read_json(choice, "scheduler/scheduler_config.json")
    kind = SCHEDULERS[choice.scheduler] if choice.scheduler else str(config.get("_class_name"))
    scheduler = getattr(diffusers, kind, None)
    if scheduler is None:
        raise CommandError(
            f"expected a checkpoint with a scheduler of diffusers, got {kind}: choose one with --scheduler"
        )
    return scheduler.from_config(config)


def load_pipeline(choice: PipelineChoice, scheduler: SchedulerMixin) -> XAIPipeline:
    """The pipeline of labels, or without a condition, with its weights, on its device, with `scheduler`.

    Raises:
        ValueError: if it cannot be loaded.
    """
    return _load(XAIPipeline, choice, scheduler)


def load_prompt_pipeline(choice: PipelineChoice, scheduler: SchedulerMixin, **options: Any) -> DiffusionPipeline:
    """A pipeline of diffusers, `options` being of its `from_pretrained`; see [`load_pipeline`].

    Raises:
        ValueError: if it cannot be loaded.
    """
    return _load(DiffusionPipeline, choice, scheduler, **options)


def _load(kind: type[_Pipeline], choice: PipelineChoice, scheduler: SchedulerMixin, **options: Any) -> _Pipeline:
    pipe = open_pipeline(kind, choice.checkpoint, choice.revision, **options)
    pipe.scheduler = scheduler
    return pipe.to(choice.device)


def pipeline_of_prompts(choice: PipelineChoice) -> type[DiffusionPipeline] | None:
    """The class of the checkpoint's pipeline if it takes a prompt, without its weights; else `None`.

    Raises:
        CommandError, ValueError, OSError: if there is no such checkpoint, or its class needs what is not installed.
    """
    name = read_json(choice, "model_index.json").get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if isinstance(kind, DummyObject):  # in place of a class whose libraries are not installed
        libraries = " ".join(library for library in kind._backends if library != "torch")
        raise CommandError(f"{name} needs libraries that are not installed: pip install {libraries}")
    takes_one = inspect.isclass(kind) and "prompt" in inspect.signature(kind.__call__).parameters
    return kind if takes_one else None


@contextmanager
def num_threads(choice: PipelineChoice) -> Iterator[None]:
    """Computes with as many threads as asked for.

    By default with one for the models inside the package: threads that wait for each other take longer than one alone
    when the network is small and the cores are shared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(choice.threads or (before if name_of_embedded(choice.checkpoint) is None else 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_libraries(unless: bool) -> Iterator[None]:
    """Silences the messages of diffusers and transformers, and their bars over the parts of a pipeline."""
    transformers = sys.modules.get("transformers")  # diffusers imports it where it is installed
    loggers = [module.utils.logging for module in (diffusers, transformers) if module is not None]
    levels = [logging.get_verbosity() for logging in loggers]
    if not unless:
        for logging in loggers:
            logging.set_verbosity_error()
            logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging, level in zip(loggers, levels, strict=True):
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def read_json(choice: PipelineChoice, file: str) -> dict[str, Any]:
    """A file of the checkpoint's, which is not more than that downloaded.

    Raises:
        CommandError, ValueError, OSError: if there is no such checkpoint, or no such file in it.
    """
    checkpoint = choice.checkpoint
    path = Path(checkpoint, file)
    if not Path(checkpoint).is_dir():
        if not is_hub_id(checkpoint):
            raise CommandError(f"no checkpoint at {checkpoint}: expected a folder or a Hub id such as user/model")
        path = fetch_file(checkpoint, file, revision=choice.revision)
    elif not path.is_file():
        raise CommandError(f"cannot load the checkpoint {checkpoint}: expected {file} in it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load the checkpoint {checkpoint}: {file}: {error}") from error
    except RecursionError as error:
        raise CommandError(f"cannot load the checkpoint {checkpoint}: {file}: nested too deeply") from error
    if not isinstance(config, dict):
        raise CommandError(f"cannot load the checkpoint {checkpoint}: expected an object in {file}")
    return config
