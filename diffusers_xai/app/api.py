"""Five named endpoints for programs, and tools for language models where `gradio[mcp]` is installed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
from gradio.events import api
from gradio.processing_utils import save_file_to_cache

from diffusers_xai.app import runs
from diffusers_xai.app.controls import Controls
from diffusers_xai.app.events import Wanted
from diffusers_xai.app.guard import Presence
from diffusers_xai.app.models import Model
from diffusers_xai.app.questions import MAX_SEEDS, Question, offered, plain_settings
from diffusers_xai.app.session import Session, readable_errors
from diffusers_xai.app.settings import MAX_SEED, Settings, SettingsError, shortened
from diffusers_xai.app.values import flag, some_of, whole
from diffusers_xai.profile.archive import write_archive


MAX_EXPERIMENT_STEPS = 100
Label = list[str] | int | None
Name: Any = Literal[tuple(offered())]


class Api:
    """The endpoints. Each call is a visitor of its own, bound by the limits of the page.

    Args:
        controls (`Controls`): What can be chosen.
        stream (`Callable`): `stream(task, model, settings, stop)` yields what `run_stream` does.
        presence (`Presence`): Who listens.
        parallel (`int`): How many runs there may be at a time.
        folder (`Path`, *optional*): Where files lie.
    """

    def __init__(
        self,
        controls: Controls,
        stream: Callable[..., Iterator[Any]],
        presence: Presence,
        parallel: int,
        folder: Path | None,
    ):
        self.controls, self.stream, self.presence, self.parallel = controls, stream, presence, parallel
        self.folder = folder

    def plan(
        self,
        request: gr.Request,
        label: Label = None,
        seed: int = 7,
        steps: int = 50,
        every: int = 10,
        layers: list[str] | None = None,
        gradients: bool = False,
        model: str = "",
    ) -> dict[str, Any]:
        """Tells what a profile would cost, without sampling.

        Args:
            request: Who asks; not an argument of the endpoint.
            label: Attributes that the image has, such as ["Smiling"], or a label's number; a default if null.
            seed: Noise seed, a whole number from 0 on.
            steps: Denoising steps, 1 to 1000.
            every: Record every this many steps, 1 to `steps`.
            layers: Paths of layers to record, at most one of a block and six in all; a default choice if null.
            gradients: Whether to compute the gradients of the default region, which takes longest.
            model: Name of a model that the page offers; the first one if empty.

        Returns:
            `{"seconds", "bytes", "backward_passes"}`.
        """
        chosen, settings = self._settings(model, label, seed, steps, every, layers, gradients)
        plan = self._result(request, runs.plan, chosen, settings)
        return {
            "seconds": round(plan.seconds, 2), "bytes": int(plan.nbytes), "backward_passes": plan.backward_passes
        }  # fmt: skip

    def profile(
        self,
        request: gr.Request,
        label: Label = None,
        seed: int = 7,
        steps: int = 50,
        every: int = 10,
        layers: list[str] | None = None,
        gradients: bool = False,
        model: str = "",
    ) -> gr.FileData:
        """Samples an image and records how it was made.

        Args:
            request: Who asks; not an argument of the endpoint.
            label: Attributes that the image has, such as ["Smiling"], or a label's number; a default if null.
            seed: Noise seed, a whole number from 0 on.
            steps: Denoising steps, 1 to 1000.
            every: Record every this many steps, 1 to `steps`.
            layers: Paths of layers to record, at most one of a block and six in all; a default choice if null.
            gradients: Whether to compute the gradients of the default region, which takes longest.
            model: Name of a model that the page offers; the first one if empty.

        Returns:
            The profile as a zip file, which `diffusers_xai.profile.archive.read_archive` opens.
        """
        chosen, settings = self._settings(model, label, seed, steps, every, layers, gradients)
        profile = self._result(request, runs.sample, chosen, settings)
        visitor = Session(self.folder)
        try:
            file = write_archive(profile, visitor.folder / "profile.zip")
            name = self.controls.c.download.GRADIO_CACHE
            cached = save_file_to_cache(file, name)
        finally:
            visitor.close()
        return gr.FileData(path=cached, orig_name="profile.zip")

    def sweep(
        self,
        request: gr.Request,
        label: Label = None,
        to: Label = None,
        seed: int = 7,
        steps: int = 50,
        model: str = "",
    ) -> dict[str, Any]:
        """Switches the label at ten times, for three seeds: from when on the image is decided.

        Args:
            request: Who asks; not an argument of the endpoint.
            label: Attributes that the image has at first, or a label's number; the model's default if null.
            to: Those that it has after the switch, another label; the page's default if null.
            seed: The first noise seed, a whole number from 0 on.
            steps: Denoising steps, 10 to 100.
            model: Name of a model that the page offers; the first one if empty.

        Returns:
            `{"step", "share", "ssim", "index"}`: the steps of the switches, the share of the run before them, per seed
            the SSIM to the image that was never switched, and per seed the predetermination index.
        """
        steps = whole(steps, "steps", 10, MAX_EXPERIMENT_STEPS)
        chosen, settings = self._settings(model, label, seed, steps, steps, [], False, to)
        if not chosen.classes or settings.label == settings.switch_to:
            raise SettingsError("to: expected another label than `label`, of a model that has labels.")
        data = self._result(request, runs.sweep, chosen, settings).data
        return {name: np.asarray(data[name].values, float).round(6).tolist() for name in _SWEEP}

    def compare(
        self,
        request: gr.Request,
        label: Label = None,
        other_label: Label = None,
        seed: int = 7,
        other_seed: int | None = None,
        steps: int = 50,
        every: int = 5,
        model: str = "",
    ) -> dict[str, Any]:
        """Compares two runs: of two labels, or of two seeds, or of both.

        Args:
            request: Who asks; not an argument of the endpoint.
            label: Attributes of the first image, or a label's number; the model's default if null.
            other_label: Those of the second; as the first if null.
            seed: Noise seed of the first.
            other_seed: That of the second; as the first if null.
            steps: Denoising steps, 1 to 1000.
            every: Compare every this many steps, 1 to `steps`.
            model: Name of a model that the page offers; the first one if empty.

        Returns:
            `{"timestep", "ssim", "attention_distance"}`: at each compared timestep the SSIM of the two states x_t, and
            the distance of their A_t (null without attention).
        """
        one = self._settings(model, label, seed, steps, every, [], False)
        other = self._settings(
            model, label if other_label is None else other_label, seed if other_seed is None else other_seed, steps,
            every, [], False,
        )  # fmt: skip
        first, second = (self._result(request, runs.sample, *chosen) for chosen in (one, other))
        ssim = first.compare(second, measure="ssim").isel(sample=0)
        attention = None
        if "attention_outputs" in first:
            attention = first.compare(second, measure="attention_distance").isel(sample=0).values.tolist()
        return {
            "timestep": ssim["timestep"].values.tolist(), "ssim": ssim.values.tolist(), "attention_distance": attention
        }  # fmt: skip

    def experiment_figure(
        self,
        request: gr.Request,
        name: Name = "predetermination",
        label: Label = None,
        to: Label = None,
        seed: int = 0,
        seeds: int = 2,
        steps: int = 50,
        model: str = "",
    ) -> dict[str, Any]:
        """Runs an experiment of the package for a few seeds and draws it.

        Args:
            request: Who asks; not an argument of the endpoint.
            name: Which experiment; `diffusers-xai experiment --help` lists them.
            label: Attributes of the image, or a label's number; the model's default if null.
            to: The other label, for experiments that compare two; the page's default if null.
            seed: The first noise seed.
            seeds: How many seeds, 1 to 8; at least 3 for `emergence`, whose images are each other's chance.
            steps: Denoising steps, 10 to 100.
            model: Name of a model that the page offers; the first one if empty.

        Returns:
            The figure as Plotly's JSON.
        """
        controls = self.controls
        (chosen_name,) = some_of([name], "name", offered(), 1)
        steps = whole(steps, "steps", 10, MAX_EXPERIMENT_STEPS)
        count = whole(seeds, "seeds", 1, MAX_SEEDS)
        chosen, settings = self._settings(model, label, seed, steps, steps, [], False, to)
        question = Question(chosen_name, count)
        settings = plain_settings(chosen_name, settings, controls.server_limits)
        question.check(chosen, settings)
        return self._result(request, question, chosen, settings).plot().to_plotly_json()

    def _settings(
        self,
        model: Any,
        label: Any,
        seed: Any,
        steps: Any,
        every: Any,
        layers: Any,
        gradients: Any,
        to: Any = None,
    ) -> tuple[Model, Settings]:
        controls = self.controls
        chosen = controls.model(next(iter(controls.models)) if model in ("", None) else model)
        limits = controls.limits(chosen)
        steps = whole(steps, "steps", 1, limits.max_steps)
        changes: dict[str, Any] = {
            "seed": whole(seed, "seed", 0, MAX_SEED - MAX_SEEDS),
            "steps": steps,
            "every": whole(every, "every", 1, steps),
            "gradients": flag(gradients, "gradients"),
        }
        if layers is not None:
            changes["layers"] = chosen.check_layers(some_of(layers, "layers", chosen.layers, limits.max_blocks))
        for key, value in (("label", label), ("switch_to", to)):
            if value is not None:
                names = value if isinstance(value, list) else None
                changes[key] = _label(controls, chosen, key, names, value)
        settings = chosen.default(controls.server_limits, **changes)
        mask = controls.region(Session(), chosen)
        return chosen, Settings(**{**vars(settings), "mask": mask}).check(limits)

    def _result(self, request: gr.Request, task: Any, model: Model, settings: Settings) -> Any:
        stop = Wanted(Session(), 0, self.presence, request.session_hash)
        *_, plan = self.stream(runs.plan, model, settings, stop)
        limits, seconds = self.controls.server_limits, plan.seconds
        if isinstance(task, Question):
            task = task.estimate(plan, model, settings)
            seconds = task.seconds
        if plan.nbytes > limits.max_bytes or seconds > limits.max_seconds:
            raise SettingsError(
                f"Expected a run of at most {limits.max_seconds:.0f} s and {limits.max_bytes / 2**20:.0f} MB, got"
                f" {seconds:.0f} s and {plan.nbytes / 2**20:.0f} MB."
            )
        if task is runs.plan:
            return plan
        *_, result = self.stream(task, model, settings, stop)
        return result

    def connect(self) -> None:
        """Makes the endpoints."""
        for method in (self.plan, self.profile, self.sweep, self.compare, self.experiment_figure):
            api(
                readable_errors(method), api_name=method.__name__, concurrency_id="model",
                concurrency_limit=self.parallel,
            )  # fmt: skip


_SWEEP = ("step", "share", "ssim", "index")


def _label(controls: Controls, model: Model, name: str, names: Any, number: Any) -> int | None:
    if not model.classes:
        raise SettingsError(f"{name}: expected none, as this model has no labels, got {shortened(number)}.")
    if names is not None:
        return model.label_of(some_of(names, name, model.attributes, len(model.attributes)), 0)
    return whole(number, name, 0, model.classes - 1)
