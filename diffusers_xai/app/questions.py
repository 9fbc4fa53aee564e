"""What a visitor can ask by an experiment: which ones, at what cost, and as a task of `run_stream`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffusers_xai.app import runs
from diffusers_xai.app.models import DRAWN, Model
from diffusers_xai.app.settings import Limits, Settings, SettingsError
from diffusers_xai.checkpoints.drawn_parts import CONCEPTS as PARTS
from diffusers_xai.checkpoints.drawn_parts import parts
from diffusers_xai.experiments import EXPERIMENTS, Experiment, ExperimentResult, Sampling
from diffusers_xai.experiments.base import ALL_LABELS, SPANNED_LABELS
from diffusers_xai.experiments.concepts import IMAGES
from diffusers_xai.experiments.nulls import NULLS
from diffusers_xai.labels import labels_between
from diffusers_xai.recording.plan import RecordingPlan


MAX_SEEDS = 8
CHECKPOINTS, CONCEPTS = "checkpoints", "concepts"  # `Experiment.needs`: several models, pictures with masks
BATCH = 4  # images at a time: what a batch records is held at once
_PACKAGE = Path(__file__).parents[1]


def offered() -> dict[str, Experiment]:
    """Those of a model with labels or without a condition; not over every pair of labels, which takes hours."""
    known = {name: entry for name, entry in EXPERIMENTS.items() if entry.needs in (None, CHECKPOINTS, CONCEPTS)}
    return {name: entry for name, entry in known.items() if entry.labels != ALL_LABELS}


def elsewhere(models: Mapping[str, Model]) -> str:
    """Which experiments are asked elsewhere, in words."""
    here = {name for _, name in choices(models)}
    left = {name: f"{entry.title} (`{name}`)" for name, entry in EXPERIMENTS.items() if name not in here}
    prompted = [left.pop(name) for name in list(left) if EXPERIMENTS[name].needs == "prompt"]
    return (
        f"Of a prompt, on the tab **Words**: {'; '.join(prompted)}, and layers patched between two prompts. On the"
        " command line, `diffusers-xai experiment`, since a page is too slow or has no models to ask them of:"
        f" {'; '.join(left.values())}. There, all of them are asked of any checkpoint, and with functions of your own;"
        " and layers are also patched between two seeds, in a region, or in one branch of guidance."
    )


def choices(models: Mapping[str, Model]) -> list[tuple[str, str]]:
    """(title, name) of what at least one of the models can answer."""
    labelled = any(model.classes > 1 for model in models.values())
    several, known = (any(getattr(model, name) for model in models.values()) for name in ("others", "has_masks"))
    return [
        (entry.title, name)
        for name, entry in offered().items()
        if (labelled or entry.labels < 2)
        and (several or entry.needs != CHECKPOINTS)
        and (known or entry.needs != CONCEPTS)
    ]


def compares_labels(experiment: Experiment) -> bool:
    """Whether it takes another label beside that of the image."""
    return experiment.labels in (2, SPANNED_LABELS)


def is_judged(experiment: Experiment) -> bool:
    """Whether attributes are told of a model with a judge; here, `gradient-attention` asks about the region."""
    return experiment.judged and experiment.name != "gradient-attention"


def control_of(experiment: Experiment) -> str:
    """The control that a visitor's run has: the first that needs no fit to many samples."""
    return next((null for null in experiment.nulls if null != "gaussian"), "none")


@dataclass(frozen=True)
class Question:
    """An experiment as a task of `run_stream`; it ends at the network's next call when it is not wanted any more.

    Args:
        name (`str`): Which experiment.
        seeds (`int`): How many seeds, from that of the settings on.
        seconds (`float`): How long it takes, about: to tell how far it is.
    """

    name: str
    seeds: int
    seconds: float = 0.0
    plan = staticmethod(runs.plan)

    def __call__(self, model: Model, settings: Settings, limits: Limits, tell: runs.Tell) -> ExperimentResult:
        """Runs it."""
        experiment = EXPERIMENTS[self.name]
        self.check(model, settings)
        labels = self._labels(model, settings)
        seeds = range(settings.seed, settings.seed + self.seeds)
        sampling = Sampling(labels, seeds, settings.steps, settings.guidance, BATCH)
        options: dict[str, Any] = {"null": control_of(experiment)}
        if experiment.region is not None:
            options["mask"] = settings.mask_array()
        others = model.others if experiment.needs == CHECKPOINTS else []
        if others:
            options["others"] = [other.pipe for other in others]
        if is_judged(experiment) and model.judge is not None:
            options["judge"] = model.judge
        if experiment.needs == CONCEPTS:
            options["concepts"] = parts(torch.empty(IMAGES, *model.pipe.sample_shape))
        with (
            in_words(model.name),
            timed(model.pipe, self.seconds, tell),
            model.scheduled(settings.scheduler),
            _held(others),
        ):
            result = experiment.run(model.pipe, sampling, **options)
        return replace(result, settings=runs.without_paths(result.settings, model.name))

    def check(self, model: Model, settings: Settings) -> None:
        """Refuses what the experiment cannot do, before any work.

        Raises:
            SettingsError: If the model has no labels that the experiment compares, they are equal, or there are too
                few seeds.
        """
        experiment = EXPERIMENTS[self.name]
        if compares_labels(experiment) and model.classes < 2:
            raise SettingsError(
                f"This experiment compares labels: expected a model with two or more, got {model.name}."
            )
        if compares_labels(experiment) and settings.label == settings.switch_to:
            raise SettingsError(f"This experiment compares labels: expected two, got {settings.switch_to} for both.")
        if experiment.needs == CHECKPOINTS and not model.others:
            raise SettingsError(
                f"Expected a model with others of its architecture, got {model.name}, which is alone here."
            )
        if experiment.needs == CONCEPTS and not model.has_masks:
            raise SettingsError(
                f"Expected pictures whose parts are known, got those of {model.name}; available: {DRAWN}."
            )
        if self.seeds < experiment.min_seeds:
            raise SettingsError(
                f"Expected at least {experiment.min_seeds} seeds for this experiment, got {self.seeds}."
            )

    def _labels(self, model: Model, settings: Settings) -> list[int]:
        experiment = EXPERIMENTS[self.name]
        if settings.label is None:
            return []
        if experiment.labels == SPANNED_LABELS:
            return labels_between(settings.label, settings.switch_to, model.attributes)
        return [settings.label, settings.switch_to][: experiment.labels]

    def estimate(self, plan: RecordingPlan, model: Model, settings: Settings) -> "Question":
        """The same with its seconds, by the plan of one plain run."""
        experiment, mask = EXPERIMENTS[self.name], settings.mask_array()
        pixels = 0 if experiment.region is None or mask is None else int(mask.sum())
        runs = experiment.runs
        if callable(runs):
            runs = runs(len(PARTS if experiment.needs == CONCEPTS else self._labels(model, settings)))
        calls = self.seeds * (runs * plan.steps + experiment.calls * pixels) + experiment.once
        return replace(self, seconds=calls * plan.sampling_seconds / plan.steps)


@contextmanager
def timed(pipe: Any, seconds: float, tell: runs.Tell) -> Iterator[None]:
    """Tells at every call of a pipeline's network how much of the foretold time is over."""
    start = time.monotonic()

    def told(unet: Any, inputs: tuple[Any, ...]) -> None:
        tell(round(min(time.monotonic() - start, 0.95 * seconds)), max(round(seconds), 1), inputs[0][0])

    hook = pipe.unet.register_forward_pre_hook(told)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """What this package refuses is told to the visitor as what the model of this name cannot answer."""
    try:
        yield
    except SettingsError:
        raise
    except (ValueError, KeyError) as error:
        if not _is_ours(error):
            raise
        raise SettingsError(f"{name} cannot answer this: {error.args[0]}") from error


@contextmanager
def _held(models: Sequence[Model]) -> Iterator[None]:
    """No other run uses the models meanwhile; it does not wait for them, as two runs could for each other."""
    with ExitStack() as stack:
        for model in models:
            if not model.lock.acquire(blocking=False):
                raise SettingsError(f"{model.name} is busy with another run: ask again in a moment.")
            stack.callback(model.lock.release)
        yield


def _is_ours(error: BaseException) -> bool:
    """Whether this package has refused something: then the text is for people."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and _PACKAGE in Path(frame.tb_frame.f_code.co_filename).parents


def plain_settings(name: str, settings: Settings, limits: Limits) -> Settings:
    """What an experiment takes of the page's settings: it records and changes what it needs itself."""
    if EXPERIMENTS[name].calls:  # for every pixel of the region
        settings = settings.thinned(limits)
    return replace(
        settings, every=settings.steps, layers=(), weights=False, gradients=False, ablations=(), switch_at=None
    )


def words(experiment: Experiment, of_drawings: bool = False) -> str:
    """What is done, how to read it, what its control is, and where the thesis has it.

    Args:
        experiment (`Experiment`): Which one.
        of_drawings (`bool`, defaults to `False`): Whether it is asked of models of drawn faces only.
    """
    control, first = control_of(experiment), experiment.nulls[0]
    slow = (
        f"{NULLS[first]}, which takes five minutes of a core for a model of 32 pixels, where a page may take three."
        f" The command `diffusers-xai experiment {experiment.name}` has it."
    )
    if control == "none":
        told = f"**No control here:** it is {slow}"
    else:
        told = f"**Control:** {NULLS[control]}." + ("" if control == first else f" Another is {slow}")
    if is_judged(experiment):
        some = "" if of_drawings else f"of {DRAWN}, "
        others = "" if of_drawings else "; the other models have no judge here"
        told += f" **Judge:** {some}what is drawn is told by measuring colours, without an error on drawings{others}."
    if experiment.judged and not is_judged(experiment):
        told += (
            " **Here** the score is the sum over the region; what a judge sees is asked by the command"
            f" `diffusers-xai experiment {experiment.name} --judge`."
        )
    if experiment.may_take == "students":
        told += (
            " **Without a student here:** the package has none. `training/distill.py` makes one in five minutes of a"
            f" core, and `diffusers-xai experiment {experiment.name}` takes it."
        )
    return f"{experiment.text}\n\n{told} *Source: {experiment.source}.*"
