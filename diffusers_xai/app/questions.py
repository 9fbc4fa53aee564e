"""What a visitor can ask by an experiment: which ones, at what cost, and as a task of `run_stream`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers_xai.app import runs
from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import Limits, Settings, SettingsError
from diffusers_xai.experiments import EXPERIMENTS, Experiment, ExperimentResult, Sampling
from diffusers_xai.experiments.base import ALL_LABELS, SPANNED_LABELS
from diffusers_xai.experiments.nulls import NULLS
from diffusers_xai.labels import labels_between
from diffusers_xai.recording.plan import RecordingPlan


MAX_SEEDS = 8
CHECKPOINTS = "checkpoints"  # `Experiment.needs` of those that compare several
BATCH = 4  # images at a time: what a batch records is held at once
_PACKAGE = Path(__file__).parents[1]


def offered() -> dict[str, Experiment]:
    """Those that a visitor can run: of the models on offer, and not over every pair of labels, which takes hours."""
    known = {name: entry for name, entry in EXPERIMENTS.items() if entry.needs in (None, CHECKPOINTS)}
    return {name: entry for name, entry in known.items() if entry.labels != ALL_LABELS}


def elsewhere() -> str:
    """Which experiments are asked on the command line alone, in words."""
    left = [f"{entry.title} (`{name}`)" for name, entry in EXPERIMENTS.items() if name not in offered()]
    return (
        "The command `diffusers-xai experiment` asks more, where a page is too slow, or a pipeline with a prompt or"
        f" a function of your own is needed: {'; '.join(left)}."
    )


def choices(models: Mapping[str, Model]) -> list[tuple[str, str]]:
    """(title, name) of what at least one of the models can answer."""
    labelled = any(model.classes > 1 for model in models.values())
    several = any(model.others for model in models.values())
    return [
        (entry.title, name)
        for name, entry in offered().items()
        if (labelled or entry.labels < 2) and (several or entry.needs != CHECKPOINTS)
    ]


def compares_labels(experiment: Experiment) -> bool:
    """Whether it takes another label beside that of the image."""
    return experiment.labels in (2, SPANNED_LABELS)


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

    def __call__(self, model: Model, settings: Settings, limits: Limits, tell: runs.Tell) -> ExperimentResult:
        """Runs it."""
        experiment, start = EXPERIMENTS[self.name], time.monotonic()
        self.check(model, settings)
        labels = self._labels(model, settings)
        seeds = range(settings.seed, settings.seed + self.seeds)
        sampling = Sampling(labels, seeds, settings.steps, settings.guidance, BATCH)
        options: dict[str, Any] = {"null": control_of(experiment)}
        if experiment.region is not None:
            options["mask"] = settings.mask_array()

        def told(unet: Any, inputs: tuple[Any, ...]) -> None:
            tell(round(min(time.monotonic() - start, 0.95 * self.seconds)), max(round(self.seconds), 1), inputs[0][0])

        others = model.others if experiment.needs == CHECKPOINTS else []
        hook = model.pipe.unet.register_forward_pre_hook(told)
        try:
            with model.scheduled(settings.scheduler), _held(others):
                if others:
                    options["others"] = [other.pipe for other in others]
                result = experiment.run(model.pipe, sampling, **options)
        except (ValueError, KeyError) as error:
            if not _is_ours(error):
                raise
            raise SettingsError(f"{model.name} cannot answer this: {error.args[0]}") from error
        finally:
            hook.remove()
        return replace(result, settings=runs.without_paths(result.settings, model.name))

    def check(self, model: Model, settings: Settings) -> None:
        """Refuses what the experiment cannot do, before any work.

        Raises:
            SettingsError: If the model has no labels that the experiment compares, they are equal, or there are too
                few seeds.
        """
        experiment = EXPERIMENTS[self.name]
        if compares_labels(experiment) and model.classes < 2:
            raise SettingsError("This experiment compares two labels, and this model has none to compare.")
        if compares_labels(experiment) and settings.label == settings.switch_to:
            raise SettingsError("This experiment compares two labels: choose another one than that of the image.")
        if experiment.needs == CHECKPOINTS and not model.others:
            raise SettingsError("This experiment compares checkpoints of one architecture, and only one is offered.")
        if self.seeds < experiment.min_seeds:
            raise SettingsError(f"This experiment needs at least {experiment.min_seeds} seeds, not {self.seeds}.")

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
            runs = runs(len(self._labels(model, settings)))
        call = plan.sampling_seconds / plan.steps
        return replace(self, seconds=self.seeds * call * (runs * plan.steps + experiment.calls * pixels))


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


def plain_settings(settings: Settings) -> Settings:
    """What an experiment takes of the page's settings: it records and changes what it needs itself."""
    return replace(
        settings, every=settings.steps, layers=(), weights=False, gradients=False, ablations=(), switch_at=None
    )


def words(experiment: Experiment) -> str:
    """What is done, how to read it, what its control is, and where the thesis has it."""
    control = control_of(experiment)
    if control == "none":
        told = (
            f"**No control here:** it is {NULLS[experiment.nulls[0]]}, which takes too long for a page. The command"
            f" `diffusers-xai experiment {experiment.name}` has it."
        )
    else:
        told = f"**Control:** {NULLS[control]}."
    return f"{experiment.text}\n\n{told} *Source: {experiment.source}.*"
