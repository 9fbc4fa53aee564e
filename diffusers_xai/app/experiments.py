"""The tab of experiments: one question over a few seeds, with the labels, the region and the settings of the page."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr

from diffusers_xai.app import runs, texts
from diffusers_xai.app.captions import caption
from diffusers_xai.app.controls import RAW
from diffusers_xai.app.events import NO_PROGRESS, Events, Wanted
from diffusers_xai.app.models import Model
from diffusers_xai.app.questions import (
    MAX_SEEDS,
    Question,
    choices,
    compares_labels,
    control_of,
    elsewhere,
    plain_settings,
    words,
)
from diffusers_xai.app.session import Session, readable_errors
from diffusers_xai.app.settings import MAX_SEED, Settings, SettingsError
from diffusers_xai.app.theme import themed
from diffusers_xai.app.values import some_of, whole
from diffusers_xai.experiments import EXPERIMENTS, Experiment, ExperimentResult
from diffusers_xai.experiments.figures import worth
from diffusers_xai.experiments.nulls import NULLS
from diffusers_xai.experiments.page import write_experiments


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
    with gr.Row():
        c.experiment_run = gr.Button(
            "Run the experiment", variant="primary", elem_id="experiment-run", min_width=160
        )  # fmt: skip
        c.experiment_cost = gr.Button("What would it cost?", elem_id="experiment-cost", min_width=160)
        c.experiment_cancel = gr.Button("Cancel", elem_id="experiment-cancel", min_width=100)
    c.experiment_status = gr.Markdown(texts.EMPTY_EXPERIMENT, elem_id="experiment-status", elem_classes="note")
    c.experiment_shown = gr.Markdown("", elem_id="experiment-shown")
    figure = partial(gr.Plot, elem_classes="figure", show_label=False, visible=False)
    c.experiment_plot = figure(label="Result", elem_id="experiment-plot")
    c.experiment_images = figure(label="Images of the first seed", elem_id="experiment-images")
    c.experiment_table = gr.HTML(visible=False, elem_id="experiment-table")
    c.experiment_file = gr.DownloadButton(
        "Download numbers and report (zip)", size="sm", visible=False, elem_id="experiment-file"
    )  # fmt: skip
    gr.Markdown(elsewhere())


class ExperimentTab:
    """The handlers of the tab.

    Args:
        events (`Events`): How runs are made.
    """

    def __init__(self, events: Events):
        self.c, self.controls, self.events = events.c, events.controls, events

    def describe(self, name: Any) -> tuple[Any, ...]:
        """The words of a question, whether it compares labels, and its seeds."""
        experiment = self._experiment(name)
        few = experiment.min_seeds
        return (
            words(experiment),
            gr.update(visible=compares_labels(experiment)),
            gr.update(minimum=few, value=max(2, few)),
        )

    def _experiment(self, name: Any) -> Experiment:
        (chosen,) = some_of([name], "Question", [name for _, name in choices(self.controls.models)], 1)
        return EXPERIMENTS[chosen]

    def _asked(self, session: Session, *values: Any) -> tuple[Question, Model, Settings]:
        """What is asked: the question, of which model, with which settings."""
        name, names, number, seeds, *page = values
        experiment = self._experiment(name)
        settings = plain_settings(self.controls.settings(session, *page))
        model = self.controls.model(settings.model)
        other = self.controls.label(model, names, number) if compares_labels(experiment) else None
        settings = replace(settings, switch_to=other or 0)
        if settings.seed + MAX_SEEDS >= MAX_SEED:
            raise SettingsError("Choose a smaller noise seed.")
        question = Question(experiment.name, whole(seeds, "Seeds", 1, MAX_SEEDS))
        question.check(model, settings)
        return question, model, settings

    def cost(self, session: Session, *values: Any) -> str:
        """How long it would take, in words. Outside the queue, so it does not wait long for the model."""
        try:
            question, model, settings = self._asked(session, *values)
            return self._plan(question, model, settings, session.stop, patience=5)[0]
        except SettingsError as refused:
            return str(refused)

    def _plan(
        self, question: Question, model: Model, settings: Settings, stop: runs.Stop, **options: Any
    ) -> tuple[str, Question]:
        *_, plan = self.events.stream(runs.plan, model, settings, stop, **options)
        question, most = question.estimate(plan, model, settings), self.controls.server_limits.max_seconds
        if question.seconds > most:
            raise SettingsError(
                f"This would take about {question.seconds:.0f} s; here at most {most:.0f} s are allowed. Take fewer"
                " seeds or steps, or a smaller region."
            )
        return f"**Plan:** about {max(1, question.seconds):.0f} s.", question

    def experiment(
        self, request: gr.Request, session: Session, progress: gr.Progress = NO_PROGRESS, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Runs it; streams how far it is, and ends with figures, table and file."""
        try:
            with session.running():
                yield from self._run(request, session, progress, *self._asked(session, *values))
        except SettingsError as refused:
            yield {self.c.experiment_status: str(refused)}

    def _run(
        self, request: gr.Request, session: Session, progress: gr.Progress, question: Question, model: Model,
        settings: Settings,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        status, stop = self.c.experiment_status, Wanted(session, self.events.presence, request.session_hash)
        progress(0, desc="Planning")
        text, question = self._plan(question, model, settings, stop)
        if self.events.asks_again(session, (question.name, question.seeds, settings), question.seconds):
            yield {status: f"{text} That is long: press the button again to start it."}
            return
        progress(0, desc="Waiting for the model")
        for item in self.events.stream(question, model, settings, stop):
            if isinstance(item, runs.State):
                progress((item.done, item.total), desc="Sampling and measuring", unit="s")
                yield {status: f"{text} Sampling and measuring: about {item.done / item.total:.0%} done."}
            else:
                yield self._shown(session, question, model, settings, item)

    def _shown(
        self, session: Session, question: Question, model: Model, settings: Settings, result: ExperimentResult
    ) -> dict[Any, Any]:
        c, experiment = self.c, EXPERIMENTS[result.name]
        images = result.plot_images()
        table = None if experiment.table is None else experiment.table(result)
        last = settings.seed + question.seeds - 1
        seeds = f"seeds {settings.seed} to {last}" if question.seeds > 1 else f"seed {settings.seed}"
        other = f" against **{model.words_of(settings.switch_to)}**" if compares_labels(experiment) else ""
        shown = caption(replace(settings, mask=settings.mask if experiment.region else None), model, records=False)
        control = control_of(experiment)
        told = "without a control" if control == "none" else f"control: {NULLS[control]}"
        text = f"{experiment.title}; {shown}{other}; {seeds}; {told}. {worth(question.seeds)}".rstrip()
        rows = "" if table is None else table.to_html(index=False, border=0, justify="left", float_format="%.3g")
        return {
            c.experiment_status: "Done.",
            c.experiment_shown: f"Shown: {text}",
            c.experiment_plot: gr.update(value=themed(result.plot(), session.dark), visible=True),
            c.experiment_images: gr.update(
                value=None if images is None else themed(images, session.dark), visible=images is not None
            ),
            c.experiment_table: gr.update(value=f'<div class="table">{rows}</div>', visible=bool(rows)),
            c.experiment_file: gr.update(value=_file(session, result, text), visible=True),
        }

    def connect(self) -> None:
        """Ties the handlers to the components."""
        c, safe = self.c, readable_errors
        c.experiment.input(
            safe(self.describe), c.experiment, [c.experiment_words, c.experiment_other, c.experiment_seeds], **RAW
        )
        asked = [
            c.session, c.experiment, c.experiment_names, c.experiment_class, c.experiment_seeds, *self.controls.inputs
        ]  # fmt: skip
        begin: dict[str, Any] = {"fn": safe(self.events.begin), "inputs": c.session, **RAW}
        c.experiment_run.click(**begin).success(
            safe(self.experiment), asked,
            [
                c.experiment_status, c.experiment_shown, c.experiment_plot, c.experiment_images, c.experiment_table,
                c.experiment_file,
            ],
            show_progress_on=[c.experiment_status], preprocess=False, concurrency_id="model",
            concurrency_limit=self.events.parallel, api_visibility="private",
        )  # fmt: skip
        c.experiment_cost.click(**begin).success(safe(self.cost), asked, c.experiment_status, **RAW)
        c.experiment_cancel.click(safe(self.events.cancel), c.session, c.experiment_status, **RAW)


def _file(session: Session, result: ExperimentResult, text: str) -> str:
    """A zip file of the numbers, as `ExperimentResult.load` reads them, and of a report that a browser shows."""
    folder = session.folder / "experiment"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    result.save(folder / result.name)
    write_experiments([result], folder / "report.html", text.replace("**", ""))
    return shutil.make_archive(str(session.folder / f"experiment-{result.name}"), "zip", folder)
