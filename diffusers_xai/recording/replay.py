"""A step of the run as a differentiable function of its input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from diffusers_xai.recording.clock import Run, sample_argument, sample_name
from diffusers_xai.taps import (
    SchedulerStep,
    copy_scheduler,
    edit_output,
    first_tensor,
    predicted_x0_and_noise,
    scale_model_input,
)


OUTPUTS = ("step", "noise")


@dataclass
class StepGraph:
    """The graph of one step, ready to be differentiated.

    Attributes:
        target (`torch.Tensor` of shape `(copies · batch, height, width)`): The differentiated output, its colours
            summed.
        sample (`torch.Tensor` of shape `(copies · batch, channel, height, width)`): The leaf x_t.
        labels (`list[torch.Tensor]`): The leaves that the network's label conditioning puts out, one per denoiser
            call; empty where they are not wanted.
        layers (`dict[str, torch.Tensor]`): Outputs of the requested layers, by path.
    """

    target: torch.Tensor
    sample: torch.Tensor
    labels: list[torch.Tensor]
    layers: dict[str, torch.Tensor]


class StepReplay:
    """Evaluates the step that has just been done once more, with a graph. The run itself does not notice.

    Args:
        run (`Run`): The run, at the end of a step.
        scheduler: A copy of the scheduler as it was before the step (`copy_scheduler`).
        step (`SchedulerStep`): The step.
        of (`str`): What is differentiated: `"step"`, the scheduler's mean μ_θ of the next state, or `"noise"`, the
            predicted noise ε_θ of every guidance branch.
        guidance_scale (`float`, *optional*): How the pipeline combines two branches; needed by `of="step"` then.
    """

    def __init__(self, run: Run, scheduler: Any, step: SchedulerStep, of: str, guidance_scale: float | None):
        self._run = run
        self._scheduler = scheduler
        self._step = step
        self._of = of
        self._guidance_scale = guidance_scale
        self.samples = step.sample.shape[0]
        self.device = step.sample.device

    @contextmanager
    def graph(
        self, copies: int = 1, layers: Mapping[str, nn.Module] | None = None, labels: bool = False
    ) -> Iterator[StepGraph]:
        """Runs the step forward and yields its graph.

        Args:
            copies (`int`): Times that the batch is repeated, to differentiate several pixels in one backward pass.
            layers (mapping from path to module, *optional*): Layers whose outputs are wanted.
            labels (`bool`): Whether to cut the graph at the label conditioning and give its leaf.
        """
        denoiser = self._run.denoiser.module
        outputs: dict[str, torch.Tensor] = {}
        label_leaves: list[torch.Tensor] = []

        def keep(path: str, output: torch.Tensor) -> torch.Tensor:
            # What does not depend on the sample (a time embedding) starts a graph of its own.
            outputs[path] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[path]

        def cut(output: torch.Tensor) -> torch.Tensor:
            label_leaves.append(output.detach().clone().requires_grad_())
            return label_leaves[-1]

        with ExitStack() as stack:
            stack.enter_context(self._run.replaying())
            stack.enter_context(_frozen(denoiser))
            stack.enter_context(_random_state_kept(self._step.sample.device))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for path, module in (layers or {}).items():
                stack.enter_context(edit_output(module, partial(keep, path)))
            if labels:
                stack.enter_context(edit_output(denoiser.class_embedding, cut))
            if self._of == "noise":
                sample, target = self._noise(copies)
            else:
                sample, target = self._mean(copies)
            yield StepGraph(target.sum(dim=1), sample, label_leaves, outputs)

    def _noise(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.cat([sample_argument(call) for call in self._run.calls])
        leaf = self._leaf(self._repeat(inputs, copies))
        output = self._denoise(leaf, copies)
        return leaf, predicted_x0_and_noise(self._scheduler, self._step.timestep, output, leaf)[1]

    def _mean(self, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = self._leaf(self._step.sample.repeat(copies, 1, 1, 1))
        timestep = self._step.arguments["timestep"]
        model_input = scale_model_input(copy_scheduler(self._scheduler), leaf, timestep)
        rows = sum(sample_argument(call).shape[0] for call in self._run.calls)
        branches = rows // self.samples
        if sample_argument(self._run.calls[0]).shape[1:] != model_input.shape[1:] or branches not in (1, 2):
            raise RuntimeError(
                "Gradients `of='step'` need a denoiser whose input is the scheduler's state, once or once per guidance"
                f" branch; got an input of shape {tuple(sample_argument(self._run.calls[0]).shape)} for a state of"
                f" {tuple(self._step.sample.shape)}. Use `of='noise'`."
            )
        output = self._denoise(torch.cat([model_input] * branches), copies)
        if branches == 2:
            if self._guidance_scale is None:
                raise RuntimeError(
                    "Gradients `of='step'` under guidance need to know how the branches are combined, which only"
                    " `XAIPipeline` tells. Use `of='noise'`, or no guidance."
                )
            uncond, cond = output.chunk(2)
            output = uncond + self._guidance_scale * (cond - uncond)
        ignored = ("model_output", "sample", "generator", "return_dict", "variance_noise")
        arguments = {k: v for k, v in self._step.arguments.items() if k not in ignored}
        # One scheduler per copy: a multi-step scheduler's history has the run's batch size. The noise that a
        # stochastic one adds does not depend on x_t and leaves no gradient.
        means = [
            copy_scheduler(self._scheduler).step(model_output=out, sample=x, **arguments).prev_sample
            for out, x in zip(output.chunk(copies), leaf.chunk(copies), strict=True)
        ]
        return leaf, torch.cat(means)

    def _denoise(self, model_input: torch.Tensor, copies: int) -> torch.Tensor:
        """The denoiser's calls of the step with their sample replaced, (branch · copy · sample, …)."""
        outputs, start = [], 0
        for args, kwargs in self._run.calls:
            rows = sample_argument((args, kwargs)).shape[0]
            part = model_input[start : start + rows * copies]
            start += rows * copies
            repeat = partial(self._repeat_rows, rows=rows, copies=copies)
            kwargs = {name: repeat(value) for name, value in kwargs.items()}
            if args:
                args = (part, *(repeat(value) for value in args[1:]))
            else:
                kwargs[sample_name(kwargs)] = part
            outputs.append(first_tensor(self._run.denoiser.module(*args, **kwargs)))
        return torch.cat(outputs)

    def _repeat_rows(self, value: Any, rows: int, copies: int) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        is_batched = value.ndim > 0 and value.shape[0] == rows
        return self._repeat(value, copies) if is_batched else value.clone()

    def _repeat(self, batch: torch.Tensor, copies: int) -> torch.Tensor:
        """(branch · sample, …) -> (branch · copy · sample, …)."""
        if copies == 1:
            return batch.clone()  # tensors of inference mode can take part only as copies
        branched = batch.unflatten(0, (-1, 1, self.samples))
        return branched.expand(-1, copies, *branched.shape[2:]).flatten(0, 2)

    @staticmethod
    def _leaf(batch: torch.Tensor) -> torch.Tensor:
        # Convolutions differentiate faster in this layout.
        return batch.detach().clone(memory_format=torch.channels_last).requires_grad_()


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
