"""One sampling run as it happens: the clock that all explainers and interventions read."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import nn

from diffusers_xai.denoisers import Denoiser, DenoiserCall, networks_of
from diffusers_xai.denoisers.call import prediction_of
from diffusers_xai.denoisers.guidance import Guidance, guidance_of, guides_more_later
from diffusers_xai.denoisers.labelling import Labelling
from diffusers_xai.passed import Pipeline, Scheduler
from diffusers_xai.recording.branches import branch_outputs, branches_of_calls, settled
from diffusers_xai.recording.ending import Ending, tap_progress
from diffusers_xai.recording.origins import KnownOrigins
from diffusers_xai.recording.states import folded, frames_in_rows, planned_timesteps, unfolded
from diffusers_xai.taps import SchedulerStep, exclusive, tap_call, tap_output, tap_step, tap_whole_call
from diffusers_xai.taps.call import PipelineCall, running_call, running_frame


class Run:
    """The live state of one run of a pipeline.

    A step is what happens up to and with one call of `scheduler.step`: one call of the denoiser or several.

    Attributes:
        pipeline: The pipeline.
        denoiser (`Denoiser`): Its denoiser.
        scheduler: Its scheduler.
        step (`int`): 0-based index of the current step.
        timesteps (`list[float]`): All timesteps of the run; empty until the first denoiser call.
        call (`PipelineCall`): What the pipeline was called with; empty until the first denoiser call.
        guidance (`Guidance`): Its guidance branches, as far as they are known.
        calls (`list[DenoiserCall]`): The denoiser calls of the current step.
        outputs (`list[torch.Tensor]`): What they returned.
        controls (`list[tuple[DenoiserCall, Any]]`): The calls of ControlNets in the current step and what they
            returned.
        prompt_arguments (`dict[str, set[str]]`): Arguments of the denoiser, and of each ControlNet by name, that
            switches of the prompt change.
        prompt_switches (`list[tuple[int, list[DenoiserCall]]]`): First step and denoiser calls of other prompts that
            take over.
        step_arguments (`dict[str, Any]`): Those of the `scheduler.step` that comes or has just been.
        origins (`KnownOrigins`): Which tokens of layers' outputs come from the sample.
        sign (`int`, *optional*): With which the pipeline takes what the denoiser predicts, once that is known.
        is_replaying (`bool`): Whether a step is being evaluated once more, beside the run.
        is_looping (`bool`): Whether the pipeline has begun with its steps, where a progress bar tells.
    """

    def __init__(self, denoiser: Denoiser, scheduler: Scheduler, pipeline: Pipeline):
        self.pipeline = pipeline
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.step = 0
        self.timesteps: list[float] = []
        self.call = PipelineCall()
        self.guidance = Guidance((("cond",),))
        self.calls: list[DenoiserCall] = []
        self.outputs: list[torch.Tensor] = []
        self.controls: list[tuple[DenoiserCall, Any]] = []
        self.prompt_arguments: dict[str, set[str]] = {}
        self.prompt_switches: list[tuple[int, list[DenoiserCall]]] = []
        self.step_arguments: dict[str, Any] = {}
        self.origins = KnownOrigins(denoiser)
        self.sign: int | None = None
        self._state: torch.Tensor | None = None
        self._frames: int | None = None  # of videos that the scheduler gets as rows
        self.is_replaying = False
        self.is_looping = False
        self.copies = 1  # of every image, in a replay
        self.current_call = 0  # index in `calls` of the one that runs
        self.needs_rows = False  # whether an edit relies on the order of the branches
        self.guides_more_later = False  # than at the first step
        self._thread: int | None = None
        self._callers: list[FrameType | None] = []  # the pipeline's frame below each of `calls`
        self._labelling: Labelling | None = None
        self._on_arrival: list[Callable[[DenoiserCall], None]] = []
        self._on_start: list[Callable[[], None]] = []
        self._on_call: list[tuple[int, Callable[[DenoiserCall], DenoiserCall | None]]] = []
        self._on_control: list[tuple[int, Callable[[DenoiserCall], DenoiserCall | None]]] = []
        self._before_step: list[Callable[[], None]] = []
        self._on_step: list[Callable[[SchedulerStep], None]] = []
        self._on_end: list[Callable[[torch.Tensor], None]] = []
        self._ending = Ending()

    def on_arrival(self, callback: Callable[[DenoiserCall], None]) -> None:
        """Calls `callback(call)` with every denoiser call as it comes, before anything else, also in a replay."""
        self._on_arrival.append(callback)

    def on_start(self, callback: Callable[[], None]) -> None:
        """Calls `callback` before the first denoiser call, when the timesteps are known: the place to refuse."""
        self._on_start.append(callback)

    def on_call(self, callback: Callable[[DenoiserCall], DenoiserCall | None], order: int = 0) -> None:
        """Calls `callback(call)` before every denoiser call; what it returns replaces the call.

        Callbacks of a higher `order` come later, and so have the last word.
        """
        self._on_call.append((order, callback))
        self._on_call.sort(key=lambda entry: entry[0])

    def on_control(self, callback: Callable[[DenoiserCall], DenoiserCall | None], order: int = 0) -> None:
        """Calls `callback(call)` before every call of a ControlNet; see `on_call`."""
        self._on_control.append((order, callback))
        self._on_control.sort(key=lambda entry: entry[0])

    def before_step(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the denoiser calls of a step are done, before `scheduler.step`."""
        self._before_step.append(callback)

    def on_step(self, callback: Callable[[SchedulerStep], None]) -> None:
        """Calls `callback` at the end of every step."""
        self._on_step.append(callback)

    def on_end(self, callback: Callable[[torch.Tensor], None]) -> None:
        """Calls `callback(state)` with the state with which a complete run ends, where it is known; see [`Ending`]."""
        self._on_end.append(callback)

    def end(self, state: torch.Tensor | None = None) -> None:
        """Tells that all steps are done: with which state, or that nobody has told it."""
        if not self.is_complete:
            return
        state = self._ending.unchanged(self.call.locals) if state is None else state
        if state is not None:
            for callback in self._on_end:
                callback(self.unfolded(state))
        self._on_end.clear()
        self._ending.clear()  # the pipeline goes on, and needs its memory

    @property
    def timestep(self) -> float:
        """The scheduler's t of the current step."""
        return self.timesteps[self.step]

    @property
    def is_complete(self) -> bool:
        """Whether every step of the schedule has been done."""
        return bool(self.timesteps) and self.step >= len(self.timesteps)

    @property
    def control_networks(self) -> dict[str, nn.Module]:
        """The ControlNets beside the denoiser, by name."""
        return {
            name: module
            for name, module in networks_of(self.pipeline).items()
            if "ControlNet" in type(module).__name__ and name not in self.denoiser.components
        }

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps lie in `0 .. num_train_timesteps`."""
        return int(self.scheduler.config.get("num_train_timesteps", 1000))

    @property
    def labelling(self) -> Labelling:
        """What the dims mean in the denoiser's current call."""
        if self._labelling is None or self._labelling.call is not self.calls[self.current_call]:
            call = self.calls[self.current_call]
            self._labelling = Labelling(self.denoiser, call, self.origins.of(call), self.origins.ran)
        self._labelling.copies = self.copies
        return self._labelling

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the dims over which the sample extends: (height, width), (frame, height, width) or (frame,)."""
        return self.labelling.positions

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the sample.

        Raises:
            ValueError: if it has none.
        """
        size = self.labelling.size
        if size is None or len(size) != 2:
            unknown = "; which tokens lie where can be told with `register_layout`" if size is None else ", over time"
            raise ValueError(
                f"Expected a sample with height and width, got {tuple(self.calls[self.current_call].sample.shape)} in"
                f" {self.denoiser.name}{unknown}."
            )
        return size

    @property
    def state(self) -> torch.Tensor:
        """The scheduler's state as the last `scheduler.step` got it.

        Raises:
            RuntimeError: before the first one.
        """
        if self._state is None:
            raise RuntimeError("Expected a run whose first step has begun, got one before it.")
        return self._state

    @property
    def num_samples(self) -> int:
        """Number of images: that of the scheduler's state, once it has been seen, else that of the denoiser's rows."""
        if self._state is not None:
            return self._state.shape[0] // (len(self.guidance.branches) if self.guidance.doubles_sample else 1)
        return self.calls[self.current_call].rows // len(self.guidance.of_call(self.current_call))

    def unfolded(self, tensor: torch.Tensor) -> torch.Tensor:
        """A state of the scheduler, or what has its form, in the form of the denoiser's sample."""
        return tensor if self._frames is None or tensor.ndim != 4 else unfolded(tensor, self._frames)

    def folded(self, tensor: torch.Tensor) -> torch.Tensor:
        """What has the form of the denoiser's sample as the scheduler takes it; the inverse of `unfolded`."""
        return tensor if self._frames is None else folded(tensor)

    def rows(self, batch: int | None = None) -> list[tuple[str, int]]:
        """Guidance branch and image of every row of the current call, or of a layer that takes frames as rows.

        Raises:
            ValueError: if the order of the branches is not known, or `batch` rows do not hold every image equally
                often.
        """
        if not self.guidance.is_known and len(self.guidance.branches) > 1:
            raise ValueError(
                f"The order of the guidance branches in {self.denoiser.name} is not known before the first step; tell"
                " it with `register_layout`."
            )
        self.needs_rows = True
        names, rows = self.guidance.of_call(self.current_call), self.calls[self.current_call].rows * self.copies
        if self._state is not None and self.step > 0:
            names = self.branches_of_calls(self.num_samples)[self.current_call]
        batch = rows if batch is None else batch
        if rows % (len(names) * self.copies) or batch % rows:
            raise ValueError(f"Expected a batch of {rows} rows in {len(names)} branches, got {batch} rows.")
        samples = range(rows // (len(names) * self.copies))
        origins = [(name, sample) for name in names for _ in range(self.copies) for sample in samples]
        return [origin for origin in origins for _ in range(batch // rows)]  # frames of one image follow each other

    def branches_of_calls(self, samples: int) -> list[tuple[str, ...]]:
        """The guidance branches in each denoiser call of a step that is done, of `samples` images."""
        return branches_of_calls(self.guidance, self.calls, samples)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Reads the pipeline's denoiser calls and scheduler steps while the context is open."""
        with ExitStack() as stack:
            stack.enter_context(self.origins.attached())
            stack.enter_context(exclusive(self.scheduler, *self.denoiser.components.values()))
            for name, module in self.denoiser.components.items():
                stack.enter_context(tap_call(module, partial(self._before_call, name, module)))
                stack.enter_context(tap_output(module, self._after_call, prediction_of))
            for name, module in self.control_networks.items():
                stack.enter_context(tap_call(module, partial(self._before_control, name, module)))
                stack.enter_context(tap_whole_call(module, partial(self._after_control, name, module)))
            stack.enter_context(tap_step(self.scheduler, self._after_step, self._ahead_of_step))
            stack.enter_context(tap_progress(self.pipeline, self._before_loop, self._after_loop))
            stack.callback(self._callers.clear)
            stack.callback(self._ending.clear)
            yield

    @contextmanager
    def replaying(self, copies: int = 1) -> Iterator[None]:
        """Denoiser calls inside the context are no part of the run: nothing is recorded of them.

        Args:
            copies (`int`): How often they repeat every image: their rows are (branch · copy · sample).
        """
        current, self.copies, self.is_replaying = self.current_call, copies, True
        try:
            yield
        finally:
            self.current_call, self.copies, self.is_replaying = current, 1, False

    def _before_call(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self.origins.ran.clear()
        call = DenoiserCall(name, module, args, kwargs)
        if self.is_replaying:
            self._arrive(call)
            return None
        if self._thread is None:
            self._thread = threading.get_ident()
        if self._thread != threading.get_ident():
            raise RuntimeError(
                f"This {type(module).__name__} is being recorded by another thread: expected calls of one run, which"
                " would be mixed up. Wait for the recording to end, or load the pipeline twice."
            )
        if self.is_complete:
            raise RuntimeError(
                f"All {len(self.timesteps)} steps of the recorded run are done, and the pipeline was called again:"
                " one recording holds one run. Open a new `record(…)` for the next."
            )
        self._arrive(call)
        self.calls.append(call)
        self._callers.append(running_frame(self.pipeline))
        self.current_call = len(self.calls) - 1
        if not self.timesteps:
            self._start()
        for _, edit in self._on_call:
            self.calls[-1] = edit(self.calls[-1]) or self.calls[-1]
        self.origins.of(self.calls[-1])  # beside the run, while no layer runs
        return self.calls[-1].args, self.calls[-1].kwargs

    def _arrive(self, call: DenoiserCall) -> None:
        for arrived in self._on_arrival:
            arrived(call)

    def _after_call(self, output: torch.Tensor) -> None:
        if not self.is_replaying:
            self.outputs.append(output.detach().clone())  # the pipeline may change it in place

    def _before_control(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.is_replaying:
            return None
        call = DenoiserCall(name, module, args, kwargs)
        for _, edit in self._on_control:
            call = edit(call) or call
        return call.args, call.kwargs

    def _after_control(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self.is_replaying:
            self.controls.append((DenoiserCall(name, module, args, kwargs), output))

    def _start(self) -> None:
        self.call = running_call(self.pipeline)
        self.guidance = guidance_of(self.pipeline, self.denoiser.layout, self.call.locals)
        self.timesteps = planned_timesteps(self.pipeline, self.scheduler, self.call, self.calls[0])
        self.guides_more_later = guides_more_later(self.call.locals, len(self.timesteps))
        for callback in self._on_start:
            callback()

    def _ahead_of_step(self, arguments: dict[str, Any]) -> None:
        if self.is_replaying:
            return
        if not self.calls:
            raise RuntimeError(
                f"`scheduler.step` was called without a call of the recorded network ({self.denoiser.name}): the"
                " pipeline uses another one. Say which: `record(pipeline, …, denoiser='…')`."
            )
        caller = running_frame(self.pipeline)
        if any(other is not caller for other in self._callers):
            raise RuntimeError(
                f"{self.denoiser.name} was called beside the recorded run, by another pipeline or by hand: expected"
                " calls of one run inside `record(…)`, which would be mixed up with them."
            )
        self._ending.before_step(caller, arguments["sample"])
        self._frames = frames_in_rows(arguments["sample"], self.calls[0].sample)
        self.step_arguments, self._state = arguments, self.unfolded(arguments["sample"])
        for callback in self._before_step:
            callback()

    def _after_step(self, step: SchedulerStep) -> None:
        if self.is_replaying:
            return
        self._ending.after_step(step.result)
        if self._frames is not None:
            told = step.pred_original_sample
            step = replace(
                step,
                sample=self.unfolded(step.sample),
                model_output=self.unfolded(step.model_output),
                result=self.unfolded(step.result),
                pred_original_sample=None if told is None else self.unfolded(told),
            )
        if self.step < len(self.timesteps):
            self.timesteps[self.step] = step.timestep
        else:
            self.timesteps.append(step.timestep)
        if self.step == 0:
            self._settle_branches(step)
        for callback in self._on_step:
            callback(step)
        self.calls.clear()
        self.outputs.clear()
        self.controls.clear()
        self._callers.clear()
        self.step += 1

    def _before_loop(self) -> None:
        self.is_looping = True

    def _after_loop(self) -> None:
        if self.is_complete:
            self._ending.read()
            if self._ending.state is not None:
                self.end(self._ending.state)

    def branch_outputs(self) -> list[torch.Tensor] | None:
        """What the denoiser predicted for each branch of the step; see `recording.branches`."""
        return branch_outputs(self.calls, self.outputs, self.num_samples)

    def _settle_branches(self, step: SchedulerStep) -> None:
        """Reads off the first step in which order the pipeline combines its branches.

        Raises:
            RuntimeError: if the branches are not what an edit, or a record of one of them, took them for.
        """
        names = self.guidance.branches
        self.guidance = settled(self.guidance, self.calls, self.outputs, self.num_samples, step)
        if self.needs_rows and names != self.guidance.branches:
            raise RuntimeError(
                f"What is edited or recorded of single guidance branches took them for {names}, but the pipeline"
                f" combined them as {self.guidance.branches}: tell the order with `register_layout`."
            )
