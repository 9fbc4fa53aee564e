"""The tab of experiments: one question over a few seeds, with the labels, the region and the settings of the page."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gradio as gr

from diffusers_xai.analysis import interval_worth
from diffusers_xai.app import texts
from diffusers_xai.app.asking import AskingTab, add_answer
from diffusers_xai.app.captions import caption
from diffusers_xai.app.controls import RAW
from diffusers_xai.app.events import NO_PROGRESS, Events
from diffusers_xai.app.models import Model
from diffusers_xai.app.questions import (
    MAX_SEEDS,
    Question,
    choices,
    compares_labels,
    control_of,
    elsewhere,
    is_judged,
    plain_settings,
    words,
)
from diffusers_xai.app.session import Session, readable_errors
from diffusers_xai.app.settings import MAX_SEED, Settings, SettingsError, limit
from diffusers_xai.app.values import some_of, whole
from diffusers_xai.experiments import EXPERIMENTS, Experiment
from diffusers_xai.experiments.nulls import NULLS
from diffusers_xai.labels import attribute_words


def add_tab(c: SimpleNamespace, models: Mapping[str, Model], label: Callable[[str, str], None]) -> None:
    """The components, within a tab.

    Args:
        c (`SimpleNamespace`): Takes them.
        models (`Mapping[str, Model]`): What can be chosen.
        label (`Callable`): Makes the boxes of a label: `label(title, elem_id)`.
    """
    found = choices(models)
    entry = EXPERIMENTS[found[0][1]]
    gr.Markdown(texts.EXPERIMENTS)
    c.experiment = gr.Dropdown(found, value=found[0][1], label="Question", elem_id="experiment")
    c.experiment_words = gr.Markdown(words(entry), elem_id="experiment-words")
    with gr.Group(visible=compares_labels(entry), elem_id="experiment-other") as c.experiment_other:
        label("Compared with", "experiment-to")
    c.experiment_seeds = gr.Slider(
        entry.min_seeds, MAX_SEEDS, value=max(2, entry.min_seeds), step=1, label="Seeds, from the noise seed on",
        elem_id="experiment-seeds",
    )  # fmt: skip
    add_answer(c, "experiment", "Run the experiment", texts.EMPTY_EXPERIMENT)
    gr.Markdown(elsewhere(models))


class ExperimentTab(AskingTab):
    """The handlers of the tab.

    Args:
        events (`Events`): How runs are made.
    """

    def __init__(self, events: Events):
        super().__init__(events, "experiment")

    def describe(self, name: Any, shown: Any) -> tuple[Any, ...]:
        """The words of a question, whether it compares labels, its seeds, and what is said of the answer below."""
        experiment = self._experiment(name)
        few = experiment.min_seeds
        return (
            words(experiment),
            gr.update(visible=compares_labels(experiment)),
            gr.update(minimum=few, value=max(2, few)),
            self.standing(shown, experiment.title, texts.EMPTY_EXPERIMENT),
        )

    def _experiment(self, name: Any) -> Experiment:
        (chosen,) = some_of([name], "Question", [name for _, name in choices(self.controls.models)], 1)
        return EXPERIMENTS[chosen]

    def asked(self, session: Session, *values: Any) -> tuple[Question, Model, Settings]:
        """What is asked: the question, of which model, with which settings."""
        name, names, number, seeds, *page = values
        experiment = self._experiment(name)
        settings = self.controls.settings(session, *page)
        settings = plain_settings(experiment.name, settings, self.controls.server_limits)
        model = self.controls.model(settings.model)
        other = self.controls.label(model, names, number) if compares_labels(experiment) else None
        settings = replace(settings, switch_to=other or 0)
        if settings.seed + MAX_SEEDS >= MAX_SEED:
            most = limit(MAX_SEED - MAX_SEEDS - 1)
            raise SettingsError(f"Noise seed: expected at most {most}, got {settings.seed}.")
        question = Question(experiment.name, whole(seeds, "Seeds", 1, MAX_SEEDS))
        question.check(model, settings)
        return question, model, settings

    def experiment(
        self, request: gr.Request, session: Session, run: Any, progress: gr.Progress = NO_PROGRESS, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Runs it; streams how far it is, and ends with figures, table and file."""
        yield from self.run(request, session, run, progress, *values)

    def shown(self, session: Session, task: Any, model: Any, settings: Any, result: Any) -> dict[Any, Any]:
        """The result's figures, and what it is of."""
        experiment = EXPERIMENTS[result.name]
        other = f"; compared with **{model.words_of(settings.switch_to)}**" if compares_labels(experiment) else ""
        of = replace(settings, mask=settings.mask if experiment.region else None)
        shown = caption(of, model, records=False, seeds=task.seeds)
        control = control_of(experiment)
        told = "without a control" if control == "none" else f"control: {NULLS[control]}"
        judged = "; attributes told by measuring colours" if is_judged(experiment) and model.judge else ""
        digits = ""
        if other and model.attributes:
            names = ", ".join(map(attribute_words, model.attributes))
            digits = f" The digits of a label stand for {names}: 1 has it, 0 has not."
        text = f"{experiment.title}; {shown}{other}; {told}{judged}.{digits} {interval_worth(task.seeds)}".rstrip()
        return self.answer_of(session, result, text)

    def connect(self) -> None:
        """Ties the handlers to the components."""
        c = self.c
        c.experiment.input(
            readable_errors(self.describe),
            [c.experiment, c.experiment_shown],
            [c.experiment_words, c.experiment_other, c.experiment_seeds, c.experiment_status],
            **RAW,
        )
        self.connect_buttons(
            self.experiment,
            [c.experiment, c.experiment_names, c.experiment_class, c.experiment_seeds, *self.controls.inputs],
        )
