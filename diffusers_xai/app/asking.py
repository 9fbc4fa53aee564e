"""A tab that asks something of one or more runs: what it would cost, the run, and what came out."""

import html
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import gradio as gr
import pandas as pd
import plotly.graph_objects as go

from diffusers_xai.app import runs, texts
from diffusers_xai.app.controls import RAW
from diffusers_xai.app.events import Events, Wanted
from diffusers_xai.app.session import Session, readable_errors
from diffusers_xai.app.settings import SettingsError
from diffusers_xai.app.theme import themed
from diffusers_xai.experiments import EXPERIMENTS, ExperimentResult
from diffusers_xai.experiments.page import write_experiments
from diffusers_xai.experiments.tables import q_note


DONE = "Done."
OPEN_ROWS = 12  # of a longer table, only how long it is
PARTS = ("status", "shown", "plot", "images", "table", "file")  # of an answer


class Task(Protocol):
    """What is asked, as a task of `run_stream`."""

    @property
    def seconds(self) -> float:
        """How long it takes, about."""

    @property
    def plan(self) -> Callable[..., Any]:
        """The task that plans one plain run."""

    def estimate(self, plan: Any, model: Any, settings: Any) -> "Task":
        """The same with its seconds, by that plan."""

    def __call__(self, model: Any, settings: Any, limits: Any, tell: runs.Tell) -> Any:
        """Runs it."""


# What is asked, of which model, with which settings.
Asked = tuple[Task, Any, Any]


def add_answer(c: SimpleNamespace, name: str, button: str, empty: str) -> None:
    """The buttons, and where the answer will stand.

    Args:
        c (`SimpleNamespace`): Takes the components, each with `name` before its own.
        name (`str`): What the tab is called there, and in `elem_id`.
        button (`str`): What the button says that runs it.
        empty (`str`): What is told before the first answer.
    """
    with gr.Row():
        run = gr.Button(button, variant="primary", elem_id=f"{name}-run", min_width=160)
        cost = gr.Button("What would it cost?", elem_id=f"{name}-cost", min_width=160)
        cancel = gr.Button("Cancel", elem_id=f"{name}-cancel", min_width=100)
    status = gr.Markdown(empty, elem_id=f"{name}-status", elem_classes="note status")
    shown = gr.Markdown("", elem_id=f"{name}-shown")
    figure = partial(gr.Plot, elem_classes="figure", show_label=False, visible=False)
    plot = figure(label="Result", elem_id=f"{name}-plot")
    images = figure(label="Images of the first seed", elem_id=f"{name}-images")
    table = gr.HTML(visible=False, elem_id=f"{name}-table")
    file = gr.DownloadButton("Download all of it (zip)", size="sm", visible=False, elem_id=f"{name}-file")
    made: dict[str, Any] = {"run": run, "cost": cost, "cancel": cancel}
    made |= dict(zip(PARTS, (status, shown, plot, images, table, file), strict=True))
    for part, component in made.items():
        setattr(c, f"{name}_{part}", component)


class AskingTab(ABC):
    """The handlers.

    Args:
        events (`Events`): How runs are made.
        name (`str`): The tab's, as in `add_answer`.
    """

    def __init__(self, events: Events, name: str):
        self.c, self.controls, self.events, self.name = events.c, events.controls, events, name

    @abstractmethod
    def asked(self, session: Session, *values: Any) -> Asked:
        """What the controls ask, checked."""

    @abstractmethod
    def shown(self, session: Session, task: Any, model: Any, settings: Any, result: Any) -> dict[Any, Any]:
        """What came out, see `answer`."""

    def cost(self, session: Session, *values: Any) -> str:
        """How long it would take, in words. Outside the queue, so it does not wait long for the model."""
        try:
            with self.events.asking():
                return self._plan(*self.asked(session, *values), None, patience=5)[0]
        except SettingsError as refused:
            return str(refused)

    def _plan(self, task: Task, model: Any, settings: Any, stop: runs.Stop | None, **options: Any) -> tuple[str, Task]:
        *_, plan = self.events.stream(task.plan, model, settings, stop, **options)
        task, most = task.estimate(plan, model, settings), self.controls.server_limits.max_seconds
        if task.seconds > most:
            raise SettingsError(
                f"Expected at most {most:.0f} s of computing, got about {task.seconds:.0f} s. Take fewer"
                " seeds or steps or a faster model, or ask about less."
            )
        return f"**Plan:** about {max(1, task.seconds):.0f} s.", task

    def run(
        self, request: gr.Request, session: Session, run: Any, progress: gr.Progress, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Runs it; streams how far it is, and ends with the answer."""
        status = getattr(self.c, f"{self.name}_status")
        try:
            with session.running(run) as number:
                question, model, settings = self.asked(session, *values)
                stop = Wanted(session, number, self.events.presence, request.session_hash)
                progress(0, desc="Planning, once the model is free")
                text, task = self._plan(question, model, settings, stop)
                if self.events.asks_again(session, (question, settings), task.seconds):
                    yield {status: f"{text} That is long: press the button again to start it."}
                    return
                progress(0, desc="Waiting for the model")
                for item in self.events.stream(task, model, settings, stop):
                    if isinstance(item, runs.State):
                        progress((item.done, item.total), desc="Sampling and measuring", unit="s")
                        yield {status: f"{text} Sampling and measuring: about {item.done / item.total:.0%} done."}
                    else:
                        yield self.shown(session, task, model, settings, item)
        except SettingsError as refused:
            yield {status: str(refused)}

    def standing(self, shown: Any, title: str, empty: str) -> str:
        """What the status says of the answer below it once another question has been chosen.

        Args:
            shown: What the page says that it shows.
            title (`str`): The question that is now chosen.
            empty (`str`): What is told before the first answer.
        """
        if not isinstance(shown, str) or not shown:
            return empty
        return DONE if shown.startswith(_shown(title)) else texts.EARLIER

    def answer(
        self,
        session: Session,
        text: str,
        plot: go.Figure,
        images: go.Figure | None,
        file: Path,
        table: pd.DataFrame | None = None,
    ) -> dict[Any, Any]:
        """Everything that is shown of a result."""
        rows = "" if table is None else table_html(table)
        values = (
            DONE,
            _shown(text),
            gr.update(value=themed(plot, session.dark), visible=True),
            gr.update(value=None if images is None else themed(images, session.dark), visible=images is not None),
            gr.update(value=rows, visible=bool(rows)),
            gr.update(value=str(file), visible=True),
        )
        return dict(zip(self.outputs, values, strict=True))

    def answer_of(self, session: Session, result: ExperimentResult, text: str) -> dict[Any, Any]:
        """The same of an experiment; its file holds the numbers, for `ExperimentResult.load`, and a report."""
        table = EXPERIMENTS[result.name].table
        folder = session.folder / self.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        result.save(folder / result.name)
        write_experiments([result], folder / "report.html", text.replace("**", ""))
        file = shutil.make_archive(str(session.folder / f"{self.name}-{result.name}"), "zip", folder)
        rows = None if table is None else table(result)
        return self.answer(session, text, result.plot(), result.plot_images(), Path(file), rows)

    @property
    def outputs(self) -> list[Any]:
        """The components of an answer."""
        return [getattr(self.c, f"{self.name}_{part}") for part in PARTS]

    def connect_buttons(self, run: Callable[..., Any], asked: Sequence[Any]) -> None:
        """Ties the buttons to the handlers.

        Args:
            run (`Callable`): The tab's own handler, which calls `run`.
            asked (`Sequence`): The components whose values `asked` takes, after the session.
        """
        safe, session = readable_errors, self.c.session
        button, cost, cancel = (getattr(self.c, f"{self.name}_{part}") for part in ("run", "cost", "cancel"))
        status = self.outputs[0]
        button.click(**self.events.numbered).success(
            safe(run), [session, self.c.asked, *asked], self.outputs, show_progress_on=[status], **self.events.queued
        )
        cost.click(safe(self.cost), [session, *asked], status, **RAW)
        cancel.click(safe(self.events.cancel), session, status, **RAW)


def _shown(text: str) -> str:
    """What the page says that it shows."""
    return f"Shown: {text}"


def table_html(table: pd.DataFrame) -> str:
    """A table of an answer, closed if it is long, with what its q-values mean."""
    rows = table.to_html(index=False, border=0, justify="left", float_format="{:.3g}".format)
    is_open = " open" * (len(table) <= OPEN_ROWS)
    return (
        f"<details{is_open}><summary>Table of {len(table)} rows</summary>"
        f'<div class="table" tabindex="0">{rows}</div><p>{html.escape(q_note(table))}</p></details>'
    )
