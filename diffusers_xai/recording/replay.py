"""A step of the run as a differentiable function of its input."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import nn

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.denoisers.call import prediction_of
from diffusers_xai.denoisers.guidance import combination, mixture
from diffusers_xai.passed import Scheduler
from diffusers_xai.recording.clock import Run
from diffusers_xai.recording.inputs import ControlInput, NoisyInput
from diffusers_xai.recording.repeat import repeat_rows, repeated
from diffusers_xai.recording.states import predicted_part
from diffusers_xai.taps import NoiseLevel, copy_scheduler, edit_output, keep_graph, scale_model_input, x0_and_noise
from diffusers_xai.taps.alone import random_state_kept
from diffusers_xai.taps.probe import shortest_time


OUTPUTS = ("step", "noise", "x0")


@dataclass
class StepGraph:
    """The graph of one step, ready to be differentiated.

    Attributes:
        output (`torch.Tensor` of shape `(branch · copy · sample, channel, *positions)`): The differentiated output.
        target (`torch.Tensor` of shape `(branch · copy · sample, *positions)`): The same, its channels summed.
        leaf (`torch.Tensor`): The input x_t, in the form of the scheduler's state, (branch · copy · sample, …).
        labels (`list[torch.Tensor]`): The leaves that the network's label conditioning puts out, one per denoiser
            call; empty where they are not wanted.
        layers (`dict[tuple[int, str, int], torch.Tensor]`): Outputs of the requested layers, by denoiser call, path
            and run of the layer within the call.
        image (`Callable`): Turns gradients of the leaf into (row, channel, *positions).
    """

    output: torch.Tensor
    target: torch.Tensor
    leaf: torch.Tensor
    labels: list[torch.Tensor]
    layers: dict[tuple[int, str, int], torch.Tensor]
    image: Callable[[torch.Tensor], torch.Tensor]


class StepReplay:
    """Evaluates a step once more, with a graph. The run itself does not notice.

    It is made before `scheduler.step`, so that a step that cannot be repeated is refused there.

    Args:
        run (`Run`): The run, when the denoiser calls of a step are done.
        scheduler: A copy of the scheduler as it is then (`copy_scheduler`).
        arguments (`dict`): Those of the coming `scheduler.step`.
        of (`str`): What is differentiated: `"step"`, the scheduler's mean μ_θ of the next state, or `"noise"` or
            `"x0"`, the predicted noise ε_θ or the clean image x̂_0 of every guidance branch.

    Attributes:
        level (`NoiseLevel`): Of the step, which is known at its end; needed by all but `of="step"`.

    Raises:
        RuntimeError: if the step cannot be computed again from what is known of the pipeline.
    """

    level: NoiseLevel

    def __init__(self, run: Run, scheduler: Scheduler, arguments: Mapping[str, Any], of: str):
        self._run = run
        self._scheduler = scheduler
        self._arguments = arguments
        self._of = of
        self.samples = run.num_samples
        self._state: torch.Tensor = run.unfolded(arguments["sample"])[: self.samples]
        self.device = self._state.device
        scaled = self._scaled(self._state)
        self._inputs = [NoisyInput(run, call, scaled) for call in run.calls]
        self._controls: list[ControlInput] = []
        if of != "step" and run.sign is None:
            run.sign = self._found_sign()
        if of == "step":
            for part in self._inputs:
                part.check_is_state()
            self._controls = [ControlInput(run, call, output, scaled) for call, output in run.controls]
            self._combine = self._combination()

    @contextmanager
    def graph(
        self, copies: int = 1, layers: Mapping[str, nn.Module] | None = None, labels: bool = False
    ) -> Iterator[StepGraph]:
        """Runs the step forward and yields its graph.

        Args:
            copies (`int`): Times that the batch is repeated, to differentiate several pixels in one backward pass.
            layers (mapping from path to module, *optional*): Layers whose outputs are wanted.
            labels (`bool`): Whether to cut the graph at the label conditioning and give its leaf.

        Raises:
            RuntimeError: if a denoiser call gives other rows than it did.
        """
        run, label_leaves = self._run, list[torch.Tensor]()
        outputs: dict[tuple[int, str, int], torch.Tensor] = {}

        def keep(path: str, output: torch.Tensor) -> torch.Tensor:
            call = run.current_call
            number = 1 + sum(key[:2] == (call, path) for key in outputs)
            # What does not depend on the sample (a time embedding) starts a graph of its own.
            outputs[call, path, number] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[call, path, number].clone()  # what follows may change it in place

        def cut(output: torch.Tensor) -> torch.Tensor:
            label_leaves.append(output.detach().clone().requires_grad_())
            return label_leaves[-1]

        with ExitStack() as stack:
            for component in run.denoiser.components.values():
                stack.enter_context(frozen(component))
                stack.enter_context(keep_graph(component))
            stack.enter_context(run.replaying(copies))
            stack.enter_context(random_state_kept(self.device))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for path, module in (layers or {}).items():
                select = partial(lambda path, output: run.labelling.stream(path, output)[0], path)
                stack.enter_context(edit_output(module, partial(keep, path), select=select))
            if labels:
                stack.enter_context(edit_output(run.denoiser.module.class_embedding, cut))
            leaf, target = self._mean(copies) if self._of == "step" else self._predicted(copies)
            image = run.labelling.sample
            output = image(target).values
            yield StepGraph(
                output, output.sum(dim=1), leaf, label_leaves, outputs, lambda gradient: image(gradient).values
            )

    def _scaled(self, state: torch.Tensor) -> torch.Tensor:
        return scale_model_input(copy_scheduler(self._scheduler), state, self._arguments["timestep"])

    def _predicted(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._repeat(part.noisy, part.call, copies) for part in self._inputs]
        leaf = _leaf(torch.cat(parts))
        outputs = torch.cat(self._denoise(leaf.split([part.shape[0] for part in parts]), copies))
        prediction = predicted_part(self._state, outputs) * (self._run.sign or 1)
        x0, noise = x0_and_noise(self._scheduler, self.level, prediction, leaf)
        return leaf, x0 if self._of == "x0" else noise

    def _mean(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        run, state = self._run, self._state
        leaf = _leaf(state.repeat(copies, *[1] * (state.ndim - 1)))
        scaled = self._scaled(leaf)
        replaced: dict[int, torch.Tensor] = {}
        for control in self._controls:
            replaced |= control.evaluated(scaled, self.samples, copies)
        noisy = [torch.cat([scaled] * (part.call.rows // self.samples)) for part in self._inputs]
        calls = self._denoise(noisy, copies, replaced)
        branches = [branch for output in calls for branch in output.split(self.samples * copies)]
        output = self._combine(branches)
        ignored = ("model_output", "sample", "generator", "return_dict", "variance_noise")
        arguments = {k: v for k, v in self._arguments.items() if k not in ignored}
        # One scheduler per copy: a multi-step scheduler's history has the run's batch size. The noise that a
        # stochastic one adds does not depend on x_t and leaves no gradient.
        means = [
            self._stepper().step(model_output=run.folded(out), sample=run.folded(x), **arguments, return_dict=False)[0]
            for out, x in zip(output.chunk(copies), leaf.chunk(copies), strict=True)
        ]
        return leaf, torch.cat([run.unfolded(mean) for mean in means])

    def _stepper(self) -> SchedulerMixin:
        """A scheduler in the state before the step, whose history is that of the images alone."""
        scheduler = copy_scheduler(self._scheduler)
        if self._run.guidance.doubles_sample and getattr(scheduler, "model_outputs", None):
            scheduler.model_outputs = [None if o is None else o[: self.samples] for o in scheduler.model_outputs]
        return scheduler

    def _found_sign(self) -> int:
        """The sign with which the pipeline takes the denoiser's outputs, as its sum of them shows, or its layout says.

        Raises:
            RuntimeError: if neither tells.
        """
        target = self._run.unfolded(self._arguments["model_output"])[: self.samples]
        wanted = predicted_part(self._state, target)
        parts = [predicted_part(self._state, output) for output in self._run.branch_outputs() or []]
        is_alike = len(parts) > 0 and all(part.shape == wanted.shape for part in parts)
        weights = combination(parts, wanted) if is_alike else None
        if weights is not None and weights.any():  # a prediction of zeros, at a first step, tells none
            return 1 if weights.sum() > 0 else -1
        layout = self._run.denoiser.layout
        if layout is None:
            raise RuntimeError(
                f"Gradients `of={self._of!r}`: expected a weighted sum of what {self._run.denoiser.name} puts out in"
                f" `scheduler.step`, got what {type(self._run.pipeline).__name__} makes of it, which may have the"
                " other sign: tell the `sign` with `register_layout`."
            )
        return layout.sign

    def _combination(self) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
        """How the pipeline puts the branches' outputs together at this step, a learned variance behind them too."""
        done, target = self._run.branch_outputs(), self._run.unfolded(self._arguments["model_output"])[: self.samples]
        wanted = predicted_part(self._state, target)
        channels = wanted.shape[1]

        def predictions(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [predicted_part(self._state, output) for output in outputs]

        def variances(outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [output[:, channels:] for output in outputs]

        def how(outputs: Sequence[torch.Tensor], combined: torch.Tensor) -> Callable[..., torch.Tensor]:
            same_form = all(output.shape == combined.shape for output in outputs)
            branches, variables = self._run.guidance.branches, self._run.call.locals
            found = mixture(outputs, combined, branches, variables) if same_form else None
            if found is None:
                raise RuntimeError(
                    "Gradients `of='step'`: expected a pipeline whose `scheduler.step` gets a weighted sum of the"
                    f" denoiser's outputs, got {type(self._run.pipeline).__name__}. Use `of='noise'`."
                )
            return found

        of_predictions = how(predictions(done or []), wanted)
        if target.shape == wanted.shape:
            return lambda outputs: of_predictions(predictions(outputs))
        of_variances = how(variances(done or []), target[:, channels:])
        return lambda outputs: torch.cat(
            [of_predictions(predictions(outputs)), of_variances(variances(outputs))], dim=1
        )

    def _denoise(
        self, noisy: Sequence[torch.Tensor], copies: int, replaced: Mapping[int, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The denoiser's calls of the step with their noisy part replaced, each (branch · copy · sample, …)."""
        outputs = []
        for index, (part, leaf) in enumerate(zip(self._inputs, noisy, strict=True)):
            self._run.current_call = index
            branches = part.call.rows // self.samples
            args, kwargs = repeated(part.call, self.samples, copies, self._run.labelling.frames, replaced)
            sample = part.with_noisy(leaf, self._repeat(part.call.sample, part.call, copies))
            call = DenoiserCall(part.call.component, part.call.module, args, kwargs)
            args, kwargs = call.with_sample(sample)
            output = prediction_of(part.call.module(*args, **kwargs))
            if output.shape[0] != branches * copies * self.samples:
                raise RuntimeError(f"Expected {sample.shape[0]} rows of {part.call.component}, got {output.shape[0]}.")
            outputs.append(output)
        return outputs

    def _repeat(self, batch: torch.Tensor, call: DenoiserCall, copies: int) -> torch.Tensor:
        return repeat_rows(batch, call.rows // self.samples, self.samples, copies)


def seconds_of_a_step(run: Run) -> float:
    """How long the denoiser calls of the current step take."""

    def calls() -> None:
        for index, call in enumerate(run.calls):
            run.current_call = index
            call.module(*call.args, **call.kwargs)

    with run.replaying(), torch.no_grad():
        return shortest_time(calls, run.calls[0].sample.device)


def seconds_of_a_backward_pass(run: Run) -> float:
    """How long a backward pass of all rows of the current step takes."""
    call = run.calls[0]
    with frozen(call.module), run.replaying(), torch.inference_mode(False), torch.enable_grad():
        leaf = _leaf(call.sample)
        args, kwargs = repeated(call, call.rows, 1, run.labelling.frames)
        args, kwargs = DenoiserCall(call.component, call.module, args, kwargs).with_sample(leaf)
        output = prediction_of(call.module(*args, **kwargs)).sum()
        seconds = shortest_time(lambda: torch.autograd.grad(output, leaf, retain_graph=True), leaf.device)
    return seconds * math.fsum(other.rows for other in run.calls) / call.rows


def _leaf(batch: torch.Tensor) -> torch.Tensor:
    # Convolutions differentiate faster in this layout.
    layout = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
    return batch.detach().clone(memory_format=layout).requires_grad_()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no part in the graph: gradients of activations alone are 2.6 times faster."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
