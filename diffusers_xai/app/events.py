"""Runs: settings in, states of the sample while it forms, a result into the session."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from diffusers_xai.app import figures, runs, texts
from diffusers_xai.app.captions import caption
from diffusers_xai.app.controls import RAW, Controls
from diffusers_xai.app.guard import Presence
from diffusers_xai.app.session import Busy, Result, Session, enlarged, readable_errors
from diffusers_xai.app.settings import Settings, SettingsError
from diffusers_xai.app.theme import TO_PICTURE, themed


NO_PROGRESS = gr.Progress()


class Wanted:
    """Tells a run whether its visitor still wants it: it was not cancelled, and somebody listens."""

    def __init__(self, session: Session, run: int, presence: Presence, session_hash: str | None):
        self.session, self.run, self.presence, self.session_hash = session, run, presence, session_hash

    def is_set(self) -> bool:
        """Whether to end the run."""
        return self.session.is_cancelled(self.run) or self.presence.is_gone(self.session_hash)


class Events:
    """The handlers of what computes.

    Args:
        controls (`Controls`): The settings.
        stream (`Callable`): `stream(task, model, settings, stop, patience)` yields what `run_stream` does.
        presence (`Presence`): Who listens.
        parallel (`int`): How many runs there may be at a time; those of one model wait for each other.
    """

    def __init__(self, controls: Controls, stream: Callable[..., Iterator[Any]], presence: Presence, parallel: int):
        self.c, self.controls, self.stream = controls.c, controls, stream
        self.presence, self.parallel = presence, parallel
        self._asking = threading.Semaphore(controls.server_limits.asking)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A question of what a run would cost, which may wait for a model; many would keep the server's threads.

        Raises:
            SettingsError: If as many as are allowed are asked at the moment.
        """
        if not self._asking.acquire(blocking=False):
            raise SettingsError("Too many visitors ask what a run would cost: ask again in a moment.")
        try:
            yield
        finally:
            self._asking.release()

    def cost(self, session: Session, *values: Any) -> str:
        """The plan of a run, in words. Outside the queue, so it does not wait long for the model."""
        try:
            with self.asking():
                return self.plan(self.controls.settings(session, *values), None, patience=5)[0]
        except SettingsError as refused:
            return str(refused)

    def plan(self, settings: Settings, stop: runs.Stop | None, **options: Any) -> tuple[str, float]:
        """What a run would cost, in words, and its seconds.

        Raises:
            SettingsError: If that is more than allowed.
        """
        model, limits = self.controls.model(settings.model), self.controls.server_limits
        *_, plan = self.stream(runs.plan, model, settings, stop, **options)
        if plan.nbytes > limits.max_bytes:
            raise SettingsError(
                f"Expected a profile of at most {limits.max_bytes / 2**20:.0f} MB, got"
                f" {plan.nbytes / 2**20:.0f} MB. Record less often, or fewer blocks."
            )
        if plan.seconds > limits.max_seconds:
            raise SettingsError(
                f"Expected at most {limits.max_seconds:.0f} s of computing, got about"
                f" {plan.seconds:.0f} s. Take fewer steps or a smaller region."
            )
        size = f"{plan.nbytes / 2**20:.1f} MB"
        passes = f", {plan.backward_passes} backward passes" if plan.backward_passes else ""
        return f"**Plan:** about {max(1, plan.seconds):.0f} s, {size}{passes}.", plan.seconds

    def sample(
        self, request: gr.Request, session: Session, run: Any, progress: gr.Progress = NO_PROGRESS, *values: Any
    ) -> Iterator[tuple]:
        """Samples; streams x_t and ends with the result in the session."""
        try:
            with session.running(run) as number:
                stop = Wanted(session, number, self.presence, request.session_hash)
                yield from self._sample(stop, session, progress, self.controls.settings(session, *values))
        except Busy as refused:
            yield gr.skip(), str(refused)
        except SettingsError as refused:  # told where one looks, beside the run that is still shown
            before = None if session.result is None else enlarged(figures.final_image(session.result.profile))
            yield before, f"{refused} {texts.BEFORE if session.result else ''}"

    def _sample(self, stop: Wanted, session: Session, progress: gr.Progress, settings: Settings) -> Iterator[tuple]:
        model = self.controls.model(settings.model)
        progress(0, desc="Planning, once the model is free")
        text, seconds = self.plan(settings, stop)
        if self.asks_again(session, settings, seconds):
            yield gr.skip(), f"{text} That is long: press **Sample** again to start it."
            return
        progress(0, desc="Waiting for the model")
        for item in self.stream(runs.sample, model, settings, stop):
            if isinstance(item, runs.State):
                what = "Sampling and recording" if item.done < item.total else "Finishing"
                progress((item.done, item.total), desc=what, unit="steps")
                yield enlarged(item.sample), f"{text} {what}: step {item.done} of {item.total}."
            else:
                session.result = Result(item, settings, model.blocks, caption(settings, model))
                yield enlarged(figures.final_image(item)), f"Done: {session.result.caption}."

    def asks_again(self, session: Session, asked: Any, seconds: float) -> bool:
        """Whether a long run waits for a second press, which starts it."""
        if seconds <= self.controls.server_limits.confirm_seconds or session.confirmed == asked:
            return False
        session.confirmed = asked
        return True

    def sweep(
        self, request: gr.Request, session: Session, run: Any, progress: gr.Progress = NO_PROGRESS, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """The switch sweep of three seeds."""
        try:
            with session.running(run) as number:
                stop = Wanted(session, number, self.presence, request.session_hash)
                yield from self._sweep(stop, session, progress, self.controls.sweep_settings(*values))
        except SettingsError as refused:
            yield {self.c.sweep_status: str(refused)}

    def _sweep(
        self, stop: Wanted, session: Session, progress: gr.Progress, settings: Settings
    ) -> Iterator[dict[Any, Any]]:
        model = self.controls.model(settings.model)
        progress(0, desc="Planning, once the model is free")
        *_, plan = self.stream(runs.plan, model, settings, stop)
        seconds = runs.sweep_seconds(plan)
        text = f"**Plan:** about {max(1, seconds):.0f} s at most."
        if self.asks_again(session, settings, seconds):
            yield {self.c.sweep_status: f"{text} That is long: press the button again to start it."}
            return
        progress(0, desc="Waiting for the model")
        for item in self.stream(runs.sweep, model, settings, stop):
            if isinstance(item, runs.State):
                what = "Switching the label at ten times"
                progress((item.done, item.total), desc=what, unit="steps")
                yield {self.c.sweep_status: f"{text} {what}: step {item.done} of {item.total}."}
            else:
                yield self._shown_sweep(session, settings, item)

    def _shown_sweep(self, session: Session, settings: Settings, result: Any) -> dict[Any, Any]:
        c, model = self.c, self.controls.model(settings.model)
        names = ["never", *(f"step {step}" for step in result.data["step"].values)]
        images = [
            (enlarged(image, 160), name) for image, name in zip(result.data["images"].values, names, strict=True)
        ]
        shown = (
            f"Shown: from **{model.words_of(settings.label)}** to **{model.words_of(settings.switch_to)}**,"
            f" {settings.steps} steps, seeds {settings.seed} to {settings.seed + runs.SWEEP_SEEDS - 1}; the images are"
            f" those of seed {settings.seed} ({model.name})."
        )
        return {
            c.sweep_status: "Done.",
            c.sweep_shown: shown,
            c.sweep_plot: gr.update(value=themed(result.plot(), session.dark), visible=True),
            c.sweep_images: gr.update(value=images, visible=True),
        }

    def ask(self, session: Session) -> int:
        """The number of the run that a button asks for, which may be cancelled while it waits its turn."""
        return session.ask()

    def cancel(self, session: Session) -> str:
        """Asks the runs so far to end at their next step."""
        session.cancel()
        return texts.CANCELLED

    @property
    def numbered(self) -> dict[str, Any]:
        """The event of a button that asks for a run."""
        return {"fn": readable_errors(self.ask), "inputs": self.c.session, "outputs": self.c.asked, **RAW}

    @property
    def queued(self) -> dict[str, Any]:
        """The event of the run itself, after that."""
        # The values come as the browser sent them, and are checked here: Gradio would decode pictures of any size.
        # Several at a time: one may be asked for while another that was cancelled has not yet ended.
        return {
            "preprocess": False, "concurrency_id": "model", "concurrency_limit": self.parallel,
            "api_visibility": "private", "trigger_mode": "multiple",
        }  # fmt: skip

    def connect(self, after: Callable[[Any], Any]) -> None:
        """Ties the handlers to the components.

        Args:
            after (`Callable`): Continues the event of a run that has a new result.
        """
        c, safe = self.c, readable_errors
        settings = self.controls.inputs
        sampled = c.sample.click(**self.numbered).success(
            safe(self.sample), [c.session, c.asked, *settings], [c.live, c.status], show_progress_on=[c.status],
            **self.queued,
        )  # fmt: skip
        sampled.success(None, c.status, None, js=TO_PICTURE)
        after(sampled)
        c.cancel.click(safe(self.cancel), c.session, c.status, **RAW)
        c.plan.click(safe(self.cost), [c.session, *settings], c.status, **RAW)
        c.sweep.click(**self.numbered).success(
            safe(self.sweep),
            [c.session, c.asked, c.model, c.label_names, c.label_class, c.seed, c.sweep_names, c.sweep_class],
            [c.sweep_status, c.sweep_shown, c.sweep_plot, c.sweep_images],
            show_progress_on=[c.sweep_status],
            **self.queued,
        )
        c.sweep_cancel.click(safe(self.cancel), c.session, c.sweep_status, **RAW)
