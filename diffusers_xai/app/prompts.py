"""What a visitor can ask of a model with a prompt: where words look, what they change, which layer carries them."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_xai import DecodedImages, DiffusionProfile, PromptSwitch, Samples, WordMaps, record
from diffusers_xai.app import runs
from diffusers_xai.app.questions import BATCH, in_words, timed
from diffusers_xai.app.settings import Limits, SettingsError, shortened
from diffusers_xai.checkpoints import demo_checkpoint
from diffusers_xai.checkpoints.drawn_judge import things
from diffusers_xai.checkpoints.drawn_parts import WORDS
from diffusers_xai.checkpoints.drawn_parts import words as face_and_masks
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult, Sampling
from diffusers_xai.prompts import words_of
from diffusers_xai.recording import RecordingPlan, plan


PROMPTED = "drawn-text-32 (in the package)"
MAPS, WORDS_GRADED, PATCHING = "maps", "words", "patching"  # the last two are experiments
MAX_PROMPT, MAX_WORDS = 150, 6
RECORDS = 10  # of the maps
PATCHED_RUNS = 130.0  # plain runs that a seed's patches take, by the rows that the network computes
_ROWS = 16  # patched runs at a time
_ALLOWED = re.compile(r"[\w\n ,.'’-]*")


@dataclass(eq=False)
class PromptModel:
    """A pipeline with a prompt, which all visitors share, one run at a time.

    Args:
        name (`str`): What visitors call it.
        pipe (`DiffusionPipeline`): The pipeline.
        threads (`int`): CPU threads of a run.

    Attributes:
        lock (`threading.Lock`): Held by the current run.
    """

    name: str
    pipe: Any
    threads: int = 1
    lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)

    def check(self, prompt: str, what: str) -> str:
        """The prompt itself.

        Raises:
            SettingsError: If the model would not see all of it.
        """
        count, most = len(self.pipe.tokenizer(prompt).input_ids), self.pipe.tokenizer.model_max_length
        if count > most:
            raise SettingsError(
                f"{what}: expected at most {most} pieces, got {count}. Words that this model does not know are spelled"
                " letter by letter: use those that it knows."
            )
        return prompt


def load_prompt_model() -> PromptModel:
    """The one of the package."""
    pipe = DiffusionPipeline.from_pretrained(demo_checkpoint("drawn-text-32"))
    return PromptModel(PROMPTED, pipe.to("cuda") if torch.cuda.is_available() else pipe)


@dataclass(frozen=True)
class PromptSettings:
    """What is sampled. `other` is the prompt that is switched to at a step, or patched from."""

    prompt: str
    words: tuple[str, ...]
    seed: int
    steps: int
    guidance: float
    other: str | None = None
    switch_at: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of the pipeline's call."""
        return {
            "prompt": self.prompt, "num_inference_steps": self.steps, "guidance_scale": self.guidance,
            "generator": torch.Generator().manual_seed(self.seed),
        }  # fmt: skip

    def specs(self, maps: bool = True) -> list[Any]:
        """What is recorded; of a run that another prompt takes over without the maps: it may lack the words."""
        every = max(1, self.steps // RECORDS)
        of_words = [WordMaps(self.words, every=every)] if maps and self.words else []
        return [Samples(every=every), DecodedImages(every=every), *of_words]

    def edits(self) -> list[Any]:
        """What is changed in a second run."""
        if self.other is None or self.switch_at is None:
            return []
        return [PromptSwitch(from_step=self.switch_at, to=self.other)]


@dataclass(frozen=True)
class WordRun:
    """A run whose words' maps are recorded, and the same from another prompt's step on."""

    profile: DiffusionProfile
    switched: DiffusionProfile | None


@dataclass(frozen=True)
class PromptQuestion:
    """What is asked, as a task of `run_stream`.

    Args:
        name (`str`): `MAPS`, or an experiment that takes prompts.
        seeds (`int`): How many seeds, from that of the settings on.
        seconds (`float`): How long it takes, about.
    """

    name: str
    seeds: int = 1
    seconds: float = 0.0

    def plan(self, model: PromptModel, settings: PromptSettings, limits: Limits, tell: runs.Tell) -> RecordingPlan:
        """A plain run's; refuses what cannot be recorded, such as a word that the prompt has not."""
        with in_words(model.name):
            if settings.edits():
                plan(model.pipe, settings.specs(maps=False), settings.edits(), **settings.arguments)
            return plan(model.pipe, settings.specs(), **settings.arguments)

    def estimate(self, plan: RecordingPlan, model: PromptModel, settings: PromptSettings) -> "PromptQuestion":
        """The same with its seconds, by the plan of one plain run."""
        if self.name == MAPS:
            count = 1.0 + (settings.switch_at is not None)
        elif self.name == PATCHING:
            count = PATCHED_RUNS
        else:
            words = len(settings.words)
            runs_of: Any = EXPERIMENTS[self.name].runs
            # A picture that shows what is known is seen once with the prompt, with each word left out, and twice more.
            count = runs_of(words if self._masks(settings) is None else 2 * words + 3)
        return replace(self, seconds=self.seeds * count * plan.sampling_seconds)

    def __call__(
        self, model: PromptModel, settings: PromptSettings, limits: Limits, tell: runs.Tell
    ) -> WordRun | ExperimentResult:
        """Runs it."""
        with in_words(model.name), timed(model.pipe, self.seconds, tell):
            if self.name == MAPS:
                switched = self._sample(model, settings, settings.edits()) if settings.edits() else None
                return WordRun(self._sample(model, settings, []), switched)
            seeds = range(settings.seed, settings.seed + self.seeds)
            sampling = Sampling((), seeds, settings.steps, settings.guidance, BATCH)
            options: dict[str, Any] = {
                "prompts": [settings.prompt, settings.other], "judge": things, "max_rows": _ROWS,
            }  # fmt: skip
            if self.name == WORDS_GRADED:
                options = {"prompt": settings.prompt, "words": settings.words, "concepts": self._masks(settings)}
            result = EXPERIMENTS[self.name].run(model.pipe, sampling, **options)
        return replace(result, settings=runs.without_paths(result.settings, model.name))

    @staticmethod
    def _sample(model: PromptModel, settings: PromptSettings, edits: list[Any]) -> DiffusionProfile:
        with record(model.pipe, settings.specs(maps=not edits), edits) as recording:
            model.pipe(**settings.arguments)
        profile: Any = recording.profile
        profile.provenance.update(runs.without_paths(profile.provenance, model.name))
        return profile

    @staticmethod
    def _masks(settings: PromptSettings) -> Callable[..., Any] | None:
        """Draws faces as the prompt says, if it is known where one of the words is on them."""
        return face_and_masks if set(settings.words) & set(WORDS) else None


def checked_prompt(text: Any, what: str) -> str:
    """A prompt as it can be shown and sampled.

    Raises:
        SettingsError: If it is empty, too long, or has other signs than words.
    """
    if not isinstance(text, str) or not text.strip():
        raise SettingsError(
            f"{what}: expected a text, such as “a smiling woman with blond hair”, got {shortened(text)}."
        )
    if len(text) > MAX_PROMPT or not _ALLOWED.fullmatch(text):
        raise SettingsError(
            f"{what}: expected at most {MAX_PROMPT} letters, digits, spaces, commas, full stops, hyphens and"
            f" apostrophes, got {shortened(text)}."
        )
    return " ".join(text.split())


def checked_words(text: Any, prompt: str) -> tuple[str, ...]:
    """The words and phrases between commas; the prompt's own that stand for something, if there are none.

    Raises:
        SettingsError: If they are too many, or not in the prompt.
    """
    named = checked_prompt(text, "Words").split(",") if isinstance(text, str) and text.strip() else words_of(prompt)
    words = tuple(dict.fromkeys(word.strip() for word in named if word.strip()))
    if not 1 <= len(words) <= MAX_WORDS:
        raise SettingsError(
            f"Words: expected 1 to {MAX_WORDS} words or phrases with commas between them, got {len(words)}."
        )
    for word in words:
        if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE):
            raise SettingsError(f"Words: expected words that are in the prompt, got {shortened(word)}.")
    return words
