"""A step of the run as a differentiable function of its input."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from diffusers_xai.denoisers import DenoiserCall
from diffusers_xai.denoisers.call import prediction_of
from diffusers_xai.denoisers.guidance import combination, renormalised
from diffusers_xai.recording.clock import Run, predicted_part
from diffusers_xai.recording.repeat import repeat_rows, repeated
from diffusers_xai.taps import SchedulerStep, copy_scheduler, edit_output, scale_model_input, x0_and_noise
from diffusers_xai.taps.probe import shortest_time


OUTPUTS = ("step", "noise")


@dataclass
class StepGraph:
    """The graph of one step, ready to be differentiated.

    Attributes:
        target (`torch.Tensor` of shape `(branch · copy · sample, *positions)`): The differentiated output, its
            channels summed.
        leaf (`torch.Tensor`): The input x_t, in the form of the scheduler's state, (branch · copy · sample, …).
        labels (`list[torch.Tensor]`): The leaves that the network's label conditioning puts out, one per denoiser
            call; empty where they are not wanted.
        layers (`dict[tuple[int, str, int], torch.Tensor]`): Outputs of the requested layers, by denoiser call, path
            and run of the layer within the call.
        image (`Callable`): Turns gradients of the leaf into (row, channel, *positions).
    """

    target: torch.Tensor
    leaf: torch.Tensor
    labels: list[torch.Tensor]
    layers: dict[tuple[int, str, int], torch.Tensor]
    image: Callable[[torch.Tensor], torch.Tensor]


class StepReplay:
    """Evaluates the step that has just been done once more, with a graph. The run itself does not notice.

    Args:
        run (`Run`): The run, at the end of a step.
        scheduler: A copy of the scheduler as it was before the step (`copy_scheduler`).
        step (`SchedulerStep`): The step.
        of (`str`): What is differentiated: `"step"`, the scheduler's mean μ_θ of the next state, or `"noise"`, the
            predicted noise ε_θ of every guidance branch.
    """

    def __init__(self, run: Run, scheduler: Any, step: SchedulerStep, of: str):
        self._run = run
        self._scheduler = scheduler
        self._step = step
        self._of = of
        self.samples = run.num_samples
        self.device = step.sample.device
        self._inputs = [_Input(run, call, self._scaled(step.sample[: self.samples])) for call in run.calls]

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
            RuntimeError: if the step cannot be computed again from what is known of the pipeline.
        """
        run, label_leaves = self._run, list[torch.Tensor]()
        outputs: dict[tuple[int, str, int], torch.Tensor] = {}

        def keep(path: str, output: torch.Tensor) -> torch.Tensor:
            call = run.current_call
            number = 1 + sum(key[:2] == (call, path) for key in outputs)
            # What does not depend on the sample (a time embedding) starts a graph of its own.
            outputs[call, path, number] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[call, path, number]

        def cut(output: torch.Tensor) -> torch.Tensor:
            label_leaves.append(output.detach().clone().requires_grad_())
            return label_leaves[-1]

        with ExitStack() as stack:
            for component in run.denoiser.components.values():
                stack.enter_context(_frozen(component))
            stack.enter_context(run.replaying(copies))
            stack.enter_context(_random_state_kept(self.device))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for path, module in (layers or {}).items():
                select = partial(lambda path, output: run.labelling.stream(path, output)[0], path)
                stack.enter_context(edit_output(module, partial(keep, path), select=select))
            if labels:
                stack.enter_context(edit_output(run.denoiser.module.class_embedding, cut))
            leaf, target = self._noise(copies) if self._of == "noise" else self._mean(copies)
            image = run.labelling.sample
            yield StepGraph(
                image(target).values.sum(dim=1), leaf, label_leaves, outputs, lambda gradient: image(gradient).values
            )

    def _scaled(self, state: torch.Tensor) -> torch.Tensor:
        return scale_model_input(copy_scheduler(self._scheduler), state, self._step.arguments["timestep"])

    def _noise(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [self._repeat(part.noisy, part.call, copies) for part in self._inputs]
        leaf = _leaf(torch.cat(parts))
        outputs = torch.cat(self._denoise(leaf.split([part.shape[0] for part in parts]), copies))
        layout = self._run.denoiser.layout
        prediction = predicted_part(self._step, outputs) * (layout.sign if layout is not None else 1)
        return leaf, x0_and_noise(self._scheduler, self._step.level, prediction, leaf)[1]

    def _mean(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        state = self._step.sample[: self.samples]
        leaf = _leaf(state.repeat(copies, *[1] * (state.ndim - 1)))
        scaled = self._scaled(leaf)
        calls = self._denoise(
            [torch.cat([scaled] * (part.call.rows // self.samples)) for part in self._inputs], copies
        )
        branches = [branch for output in calls for branch in output.split(self.samples * copies)]
        output = self._combined(branches)
        ignored = ("model_output", "sample", "generator", "return_dict", "variance_noise")
        arguments = {k: v for k, v in self._step.arguments.items() if k not in ignored}
        # One scheduler per copy: a multi-step scheduler's history has the run's batch size. The noise that a
        # stochastic one adds does not depend on x_t and leaves no gradient.
        means = [
            self._stepper().step(model_output=out, sample=x, **arguments, return_dict=False)[0]
            for out, x in zip(output.chunk(copies), leaf.chunk(copies), strict=True)
        ]
        return leaf, torch.cat(means)

    def _stepper(self) -> Any:
        """A scheduler in the state before the step, whose history is that of the images alone."""
        scheduler = copy_scheduler(self._scheduler)
        if self._run.guidance.doubles_sample and getattr(scheduler, "model_outputs", None):
            scheduler.model_outputs = [None if o is None else o[: self.samples] for o in scheduler.model_outputs]
        return scheduler

    def _combined(self, branches: Sequence[torch.Tensor]) -> torch.Tensor:
        """The branches' outputs put together as the pipeline did at this step."""
        done, target = self._run.branch_outputs(self._step), self._step.model_output[: self.samples]
        if done is None or len(done) != len(branches):
            raise self._unknown_combination()
        before, now = ([predicted_part(self._step, output) for output in outputs] for outputs in (done, branches))
        channels, wanted = before[0].shape[1], predicted_part(self._step, target)
        combined = self._weighted(before, now, wanted)
        if combined is None:
            combined = self._renormalised(before, now, wanted)
        if target.shape == wanted.shape:
            return combined
        variance = self._weighted(
            [o[:, channels:] for o in done], [o[:, channels:] for o in branches], target[:, channels:]
        )
        if variance is None:
            raise self._unknown_combination()
        return torch.cat([combined, variance], dim=1)

    def _weighted(
        self, before: Sequence[torch.Tensor], now: Sequence[torch.Tensor], wanted: torch.Tensor
    ) -> torch.Tensor | None:
        """`now` summed with the weights that give `wanted` from `before`, if there are such weights."""
        weights = combination(before, wanted)
        if weights is None:
            return None
        return torch.stack([w * output for w, output in zip(weights.tolist(), now, strict=True)]).sum(dim=0)

    def _renormalised(
        self, before: Sequence[torch.Tensor], now: Sequence[torch.Tensor], wanted: torch.Tensor
    ) -> torch.Tensor:
        branches, variables = self._run.guidance.branches, self._run.call.locals
        for name in ("true_cfg_scale", "guidance_scale"):
            scale = variables.get(name)
            if set(branches) != {"cond", "uncond"} or not isinstance(scale, (int, float)):
                continue
            cond, uncond = branches.index("cond"), branches.index("uncond")
            for sign in (1, -1):
                if torch.allclose(
                    sign * renormalised(before[cond], before[uncond], scale), wanted, rtol=1e-3, atol=1e-5
                ):
                    return sign * renormalised(now[cond], now[uncond], scale)
        raise self._unknown_combination()

    def _unknown_combination(self) -> RuntimeError:
        return RuntimeError(
            "Gradients `of='step'` need a pipeline whose `scheduler.step` gets a weighted sum of the denoiser's"
            f" outputs; {type(self._run.pipeline).__name__} changes them otherwise (a rescaled guidance?). Use"
            " `of='noise'`."
        )

    def _denoise(self, noisy: Sequence[torch.Tensor], copies: int) -> list[torch.Tensor]:
        """The denoiser's calls of the step with their noisy part replaced, each (branch · copy · sample, …)."""
        outputs = []
        for index, (part, leaf) in enumerate(zip(self._inputs, noisy, strict=True)):
            self._run.current_call = index
            branches = part.call.rows // self.samples
            args, kwargs = repeated(part.call, self.samples, copies, self._run.labelling.frames)
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


class _Input:
    """A denoiser call's sample, and which part of it is the scheduler's state.

    Raises:
        RuntimeError: if that part cannot be found.
    """

    def __init__(self, run: Run, call: DenoiserCall, state: torch.Tensor):
        self.call = call
        self._start, self._axis, self._shape = 0, 1, state.shape
        sample = call.sample
        expected = torch.cat([state] * (call.rows // state.shape[0])).to(sample.dtype)
        if sample.numel() == expected.numel():
            self._size: int | None = None
            self.noisy = sample.reshape(expected.shape)
            return
        differing = [
            i for i in range(1, sample.ndim) if sample.ndim == state.ndim and sample.shape[i] != state.shape[i]
        ]
        if len(differing) == 1 and sample.shape[differing[0]] > state.shape[differing[0]]:
            self._axis, self._size = differing[0], state.shape[differing[0]]
            for start in (0, sample.shape[self._axis] - self._size):
                part = sample.narrow(self._axis, start, self._size)
                if torch.equal(part, expected):
                    self._start, self.noisy = start, part
                    return
        raise RuntimeError(
            f"Gradients need to know which part of the denoiser's input is the scheduler's state: expected it in"
            f" {tuple(sample.shape)} as {tuple(state.shape)}, but {type(run.pipeline).__name__} changes it in between."
        )

    def with_noisy(self, noisy: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """`sample` with its noisy part replaced."""
        if self._size is None:
            return noisy.reshape(sample.shape).to(sample.dtype)
        before = sample.narrow(self._axis, 0, self._start)
        after_start = self._start + self._size
        after = sample.narrow(self._axis, after_start, sample.shape[self._axis] - after_start)
        return torch.cat([before, noisy.to(sample.dtype), after], dim=self._axis)


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
    with _frozen(call.module), run.replaying(), torch.inference_mode(False), torch.enable_grad():
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
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no part in the graph: gradients of activations alone are 2.6 times faster."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
